// DOM in few words.

export const $ = (selector, root = document) => root.querySelector(selector);

// el("button", {class: "quiet", onclick: f}, "Copy"): handlers are properties, all else attributes; null and false leave out.
export function el(tag, attrs = {}, ...kids) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attrs)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...kids.filter((k) => k !== null && k !== undefined && k !== false));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.appendChild(document.createElementNS(SVG, "use")).setAttribute("href", `#i-${name}`);
  return svg;
}

export function iconButton(name, label, onclick, attrs = {}) {
  return el("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...attrs }, icon(name));
}

export const number = (n, digits = 0) => n.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });

export function bytes(n) {
  const [unit, name] = [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [1, "bytes"]].find(([u]) => n >= u) ?? [1, "bytes"];
  return `${number(n / unit, unit > 1 && n / unit < 100 ? 1 : 0)} ${name}`;
}

// What a screen reader says, without moving the focus.
export function announce(text) {
  $("#announcer").textContent = text;
}

// A line at the foot of the page for some seconds, with one thing to do about it.
export function toast(text, action, label) {
  const close = () => box.remove();
  const button = action && el("button", { type: "button", class: "link", onclick: () => (close(), action()) }, label);
  const box = el("div", { class: "toast" }, el("span", {}, text), button);
  $("#toasts").replaceChildren(box);
  setTimeout(close, 9000);
}

export function download(name, text, type = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
