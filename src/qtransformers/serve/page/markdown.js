// Markdown as a model streams it, into DOM nodes. Text is only ever text: no HTML is parsed and nothing is loaded.
//
// A node is a string or {tag, attrs, kids, raw}; `kids` may be a function, called only where `raw`, the source, changed.

const MAX_DEPTH = 12; // of quotes and lists in each other
const MAX_OPEN = 64; // emphases and brackets that wait for their end
const MAX_URL = 1000;
const SCHEMES = new Set(["http:", "https:", "mailto:"]);

export function safeHref(url) {
  try {
    const u = new URL(url);
    return SCHEMES.has(u.protocol) ? u.href : null;
  } catch {
    return null; // relative to this page: a model knows nothing of it
  }
}

const node = (tag, kids, attrs = {}) => ({ tag, kids, attrs });

function link(href, kids) {
  return node("a", kids, { href, title: href, target: "_blank", rel: "noopener noreferrer nofollow" });
}

// Blocks

const indentOf = (line) => line.length - line.trimStart().length;
const isBlank = (line) => line.trim() === "";
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})(?=\s|$)/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)/;
const FIRST = /^ {0,3}(?:[-*+]|1[.)]) +\S/; // what begins a list in the middle of a paragraph

function fenceAt(line) {
  const m = FENCE.exec(line);
  const info = m && line.slice(m[0].length).trim();
  return m && !(m[1][0] === "`" && info.includes("`")) ? { mark: m[1], info, indent: indentOf(line) } : null;
}

const closes = (line, fence) =>
  indentOf(line) < 4 && line.trim().length >= fence.mark.length && line.trim() === fence.mark[0].repeat(line.trim().length);

const dedent = (line, n) => line.slice(Math.min(n, indentOf(line)));

function cells(line) {
  const found = [""];
  const text = line.trim().replace(/^\|/, "");
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "\\" && text[i + 1] === "|") found[found.length - 1] += text[++i];
    else if (text[i] === "|") found.push("");
    else found[found.length - 1] += text[i];
  }
  if (found.length > 1 && isBlank(found[found.length - 1])) found.pop();
  return found.map((c) => c.trim());
}

function aligns(line) {
  if (!line.includes("-") || !/^[\s|:-]+$/.test(line)) return null;
  const found = cells(line).map((c) => /^(:?)-+(:?)$/.exec(c));
  return found.every(Boolean) ? found.map(([, l, r]) => (r ? (l ? "centre" : "right") : "")) : null;
}

const startsTable = (lines, i) =>
  lines[i].includes("|") && i + 1 < lines.length && aligns(lines[i + 1])?.length === cells(lines[i]).length;

const startsBlock = (lines, i) =>
  fenceAt(lines[i]) || HEADING.test(lines[i]) || RULE.test(lines[i]) || QUOTE.test(lines[i]) || startsTable(lines, i);

// Each takes (lines, i, depth, live) and gives [the line after its block, the node] or null.
const BLOCKS = [code, heading, rule, quote, list, table, paragraph];

function code(lines, i) {
  const fence = fenceAt(lines[i]);
  if (!fence) return null;
  let end = i + 1;
  while (end < lines.length && !closes(lines[end], fence)) end++;
  const text = lines.slice(i + 1, end).map((l) => dedent(l, fence.indent)).join("\n");
  return [Math.min(end + 1, lines.length), codeNode(fence.info, text)];
}

function codeNode(info, text) {
  const language = info.split(/\s/)[0].slice(0, 40);
  const caption = [node("span", [language || "text"]), node("button", ["Copy"], { type: "button", class: "copy" })];
  const label = `${language} code`.trim();
  const pre = node("pre", [node("code", [text])], { tabindex: "0", role: "region", "aria-label": label });
  return node("figure", [node("figcaption", caption), pre], { class: "code" });
}

function heading(lines, i, depth, live) {
  const m = HEADING.exec(lines[i]);
  if (!m) return null;
  const text = lines[i].slice(m[0].length).trim().replace(/(^|\s)#+$/, "");
  return [i + 1, node(`h${Math.min(6, m[1].length + 2)}`, () => inline(text, live))];
}

function rule(lines, i) {
  return RULE.test(lines[i]) ? [i + 1, node("hr", [])] : null;
}

function quote(lines, i, depth, live) {
  if (!QUOTE.test(lines[i]) || depth >= MAX_DEPTH) return null;
  let end = i + 1;
  while (end < lines.length && (QUOTE.test(lines[end]) || !(isBlank(lines[end]) || startsBlock(lines, end) || ITEM.test(lines[end])))) end++;
  const inner = lines.slice(i, end).map((l) => l.replace(QUOTE, ""));
  return [end, node("blockquote", () => blocks(inner, depth + 1, live))];
}

function list(lines, i, depth, live) {
  const first = ITEM.exec(lines[i]);
  if (!first || depth >= MAX_DEPTH) return null;
  const ordered = first[2].length > 1;
  const kind = first[2].at(-1);
  const items = [];
  let loose = false;
  while (i < lines.length) {
    const m = ITEM.exec(lines[i]);
    if (!m || m[2].at(-1) !== kind || RULE.test(lines[i])) break;
    const wide = m[0].length > m[1].length + m[2].length + 4 ? m[1].length + m[2].length + 1 : m[0].length;
    const least = Math.min(wide, m[1].length + 2); // models indent by two where three are asked for
    const inner = [lines[i].slice(wide)];
    let end = i + 1;
    let gap = 0;
    for (; end < lines.length; end++) {
      if (isBlank(lines[end])) gap++;
      else if (indentOf(lines[end]) >= least) gap = 0;
      else if (gap || startsBlock(lines, end) || ITEM.test(lines[end])) break;
      inner.push(dedent(lines[end], wide));
    }
    inner.length -= gap;
    items.push(inner);
    const more = end < lines.length && ITEM.exec(lines[end])?.[2].at(-1) === kind;
    loose ||= gap > 0 && more;
    i = end - (more ? 0 : gap);
    if (!more) break;
  }
  const start = Number.parseInt(first[2], 10);
  const attrs = ordered && start !== 1 ? { start: String(start) } : {};
  return [i, node(ordered ? "ol" : "ul", items.map((inner, n) => item(inner, loose, depth, live && n === items.length - 1)), attrs)];
}

function item(inner, loose, depth, live) {
  const task = /^\[([ xX])\] /.exec(inner[0]);
  if (task) inner[0] = (task[1] === " " ? "☐ " : "☑ ") + inner[0].slice(4);
  const kids = () => {
    const found = blocks(inner, depth + 1, live);
    const spaced = loose || found.filter((b) => b.tag === "p").length > 1;
    return spaced ? found : found.flatMap((b) => (b.tag === "p" ? kidsOf(b) : [b]));
  };
  return { tag: "li", kids, attrs: task ? { class: "task" } : {}, raw: `${loose}${live}${inner.join("\n")}` };
}

function table(lines, i, depth, live) {
  if (!startsTable(lines, i)) return null;
  const align = aligns(lines[i + 1]);
  let end = i + 2;
  while (end < lines.length && !isBlank(lines[end]) && (lines[end].includes("|") || !startsBlock(lines, end))) end++;
  const row = (line, tag, open) => ({
    tag: "tr",
    kids: () => {
      const found = cells(line);
      return align.map((a, n) => node(tag, inline(found[n] ?? "", open && n === found.length - 1), a ? { class: a } : {}));
    },
    attrs: {},
    raw: `${open}${line}`,
  });
  const body = lines.slice(i + 2, end).map((l, n) => row(l, "td", live && i + 2 + n === end - 1));
  const head = node("thead", [row(lines[i], "th", false)]);
  return [end, node("div", [node("table", body.length ? [head, node("tbody", body)] : [head])], { class: "table", tabindex: "0", role: "region", "aria-label": "table" })];
}

function paragraph(lines, i, depth, live) {
  let end = i + 1;
  let level = 0;
  for (; end < lines.length && !isBlank(lines[end]); end++) {
    const text = lines[end].trim();
    level = live && end === lines.length - 1 ? 0 : /^=+$/.test(text) ? 3 : /^--+$/.test(text) ? 4 : 0;
    if (level || startsBlock(lines, end) || (FIRST.test(lines[end]) && depth < MAX_DEPTH)) break;
  }
  const raw = lines.slice(i, end).map((l) => l.trimStart()).join("\n").trimEnd();
  const kids = () => inline(raw, live);
  return [end + (level ? 1 : 0), { tag: level ? `h${level}` : "p", kids, attrs: {}, raw: `${live}${raw}` }];
}

function blocks(lines, depth, live, starts) {
  const found = [];
  const last = lines.findLastIndex((l) => !isBlank(l));
  const block = (i, live) => {
    for (const kind of BLOCKS) {
      const made = kind(lines, i, depth, live);
      if (made) return made;
    }
  };
  for (let i = 0; i <= last; ) {
    if (isBlank(lines[i])) {
      i++;
      continue;
    }
    let [end, made] = block(i, false);
    if (live && end > last) [end, made] = block(i, true);
    found.push(made);
    starts?.push(i);
    i = end;
  }
  return found;
}

// Within a line. `live` text is still growing: what is open at its end counts as closed there.

const SPECIAL = /[\\`*_~[\]!<\n]|https?:\/\//g;
const BARE = /https?:\/\/[^\s<>[\]`"*|]{1,1000}/y;
const ANGLE = /<((?:https?:\/\/|mailto:)[^\s<>]{1,1000})>/y;
const BREAK = /<br ?\/?>/iy;
const RUN = /([*_~])\1*/y;
const TICKS = /`+/y;
const PUNCTUATION = /[!-/:-@[-`{-~\p{P}\p{S}]/u;
const WORD = /[\p{L}\p{N}]/u;

const at = (regex, text, i) => ((regex.lastIndex = i), regex.exec(text));

function add(kids, kid) {
  if (kid === "") return;
  const last = kids.length - 1;
  if (typeof kid === "string" && typeof kids[last] === "string") kids[last] += kid;
  else kids.push(kid);
}

function destination(text, i) {
  if (text[i] !== "(") return null;
  let depth = 0;
  const most = Math.min(text.length, i + MAX_URL);
  for (let j = i; j < most && text[j] !== "\n"; j++) {
    if (text[j] === "\\") j++;
    else if (text[j] === "(" && ++depth > MAX_DEPTH) return null;
    else if (text[j] === ")" && --depth === 0) {
      const [url, title = '"'] = text.slice(i + 1, j).trim().split(/\s+/, 2);
      if (!`"'`.includes(title[0])) return null;
      return { url: url.replace(/^<(.*)>$/, "$1").replace(/\\([!-/:-@[-`{-~])/g, "$1"), end: j + 1 };
    }
  }
  return null;
}

const unlinked = (kids) =>
  kids.flatMap((k) => (typeof k === "string" ? [k] : k.tag === "a" ? unlinked(kidsOf(k)) : [{ ...k, kids: unlinked(kidsOf(k)) }]));

function inline(text, live) {
  const frames = [{ mark: "", n: 0, kids: [] }];
  const missing = new Set(); // lengths of runs of backticks that come no more
  const top = () => frames[frames.length - 1];
  const put = (kid) => add(top().kids, kid);
  const drop = () => {
    const f = frames.pop();
    const closed = live && f.kids.length && "*_".includes(f.mark);
    if (closed) put(node(f.n > 1 ? "strong" : "em", f.kids));
    else [f.mark.repeat(f.n), ...f.kids].forEach(put);
  };
  const unwind = (to) => {
    while (frames.length > to + 1) {
      const f = frames.pop();
      [f.mark.repeat(f.n), ...f.kids].forEach(put);
    }
  };
  const find = (mark) => frames.findLastIndex((f) => f.mark === mark || (mark === "[" && f.mark === "!["));

  function emphasis(i) {
    const run = at(RUN, text, i)[0];
    const mark = run[0];
    const before = i ? text[i - 1] : " ";
    const after = text[i + run.length] ?? " ";
    const left = !/\s/.test(after) && (!PUNCTUATION.test(after) || /\s/.test(before) || PUNCTUATION.test(before));
    const right = !/\s/.test(before) && (!PUNCTUATION.test(before) || /\s/.test(after) || PUNCTUATION.test(after));
    const opens = left && (mark !== "_" || !right || PUNCTUATION.test(before));
    const shuts = right && (mark !== "_" || !left || PUNCTUATION.test(after));
    let n = run.length;
    while (shuts && n) {
      const from = find(mark);
      const f = frames[from];
      const use = mark === "~" ? 2 : Math.min(2, n, f?.n ?? 0);
      if (!use || from < 1 || use > Math.min(n, f.n)) break;
      unwind(from);
      const made = node(mark === "~" ? "del" : use > 1 ? "strong" : "em", f.kids);
      n -= use;
      f.n -= use;
      if (f.n) f.kids = [made];
      else {
        frames.pop();
        put(made);
      }
    }
    if (n && opens && frames.length < MAX_OPEN) frames.push({ mark, n, kids: [] });
    else put(mark.repeat(n));
    return i + run.length;
  }

  function bracket(i) {
    const from = find("[");
    if (from < 1) return put("]"), i + 1;
    unwind(from);
    const to = destination(text, i + 1);
    const href = to && safeHref(to.url);
    const f = frames.pop();
    if (!href) [f.mark, ...f.kids, "]"].forEach(put);
    else put(link(href, f.kids.length ? unlinked(f.kids) : [to.url]));
    return href ? to.end : i + 1;
  }

  function ticks(i) {
    const run = at(TICKS, text, i)[0];
    const start = i + run.length;
    let end = missing.has(run.length) ? -1 : text.indexOf(run, start);
    while (end >= 0 && (text[end + run.length] === "`" || text[end - 1] === "`")) {
      while (text[end] === "`") end++;
      end = text.indexOf(run, end);
    }
    if (end < 0) missing.add(run.length);
    if (end < 0 && !(live && run.length === 1 && start < text.length)) return put(run), start;
    const inside = text.slice(start, end < 0 ? text.length : end).replaceAll("\n", " ");
    const padded = inside.startsWith(" ") && inside.endsWith(" ") && inside.trim();
    put(node("code", [padded ? inside.slice(1, -1) : inside]));
    return end < 0 ? text.length : end + run.length;
  }

  function address(i, m) {
    let url = m[0];
    while (/[.,:;!?'"_~]$/.test(url) || (url.endsWith(")") && !url.includes("("))) url = url.slice(0, -1);
    const href = safeHref(url);
    put(href ? link(href, [url]) : url);
    return i + url.length;
  }

  let i = 0;
  while (i < text.length) {
    const m = at(SPECIAL, text, i);
    const from = m ? m.index : text.length;
    put(text.slice(i, from));
    i = from;
    if (!m) break;
    const c = m[0];
    let found;
    if (c === "\\") {
      const next = text[i + 1] ?? "";
      if (next === "\n") put(node("br", []));
      else put(/[!-/:-@[-`{-~]/.test(next) ? next : c + next);
      i += 1 + next.length;
    } else if (c === "\n") i = (put(node("br", [])), i + 1);
    else if (c === "`") i = ticks(i);
    else if ("*_~".includes(c)) i = emphasis(i);
    else if (c === "]") i = bracket(i);
    else if (c === "[" || (c === "!" && text[i + 1] === "[")) {
      const mark = c === "[" ? c : "![";
      if (frames.length < MAX_OPEN) frames.push({ mark, n: 1, kids: [] });
      else put(mark);
      i += mark.length;
    } else if (c === "<" && (found = at(ANGLE, text, i))) {
      const href = safeHref(found[1]);
      put(href ? link(href, [found[1]]) : found[0]);
      i += found[0].length;
    } else if (c === "<" && (found = at(BREAK, text, i))) i = (put(node("br", [])), i + found[0].length);
    else if (c.length > 1 && !WORD.test(text[i - 1] ?? "") && (found = at(BARE, text, i))) i = address(i, found);
    else i = (put(c), i + c.length);
  }
  while (frames.length > 1) drop();
  return frames[0].kids;
}

// Into the DOM: nodes that stay the same stay where they are, so that a selection survives.

const kidsOf = (v) => (typeof v.kids === "function" ? (v.kids = v.kids()) : v.kids);
const sameAttrs = (a, b) => Object.keys(a).length === Object.keys(b).length && Object.keys(a).every((k) => a[k] === b[k]);

function create(v) {
  if (typeof v === "string") return document.createTextNode(v);
  const made = document.createElement(v.tag);
  for (const [name, value] of Object.entries(v.attrs)) made.setAttribute(name, value);
  made.append(...kidsOf(v).map(create));
  made.vnode = v;
  return made;
}

function update(dom, v) {
  if (typeof v === "string") {
    if (dom.nodeType !== Node.TEXT_NODE) return false;
    if (v.startsWith(dom.data)) dom.appendData(v.slice(dom.data.length));
    else dom.data = v;
    return true;
  }
  const old = dom.vnode;
  if (old?.tag !== v.tag || !sameAttrs(old.attrs, v.attrs)) return false;
  if (v.raw === undefined || v.raw !== old.raw) patch(dom, dom.firstChild, kidsOf(v));
  dom.vnode = v;
  return true;
}

function patch(parent, dom, kids) {
  for (const v of kids) {
    const next = dom?.nextSibling ?? null;
    if (!dom) parent.append(create(v));
    else if (!update(dom, v)) dom.replaceWith(create(v));
    dom = next;
  }
  while (dom) {
    const next = dom.nextSibling;
    dom.remove();
    dom = next;
  }
}

// Renders into `root` what `push` is given piece by piece. Finished blocks are never looked at again, and an open block of
// code only grows: the work is linear in the text but for the last block.
export class MarkdownStream {
  constructor(root) {
    this.root = root;
    this.tail = ""; // source of the blocks that may still change
    this.done = 0; // DOM children that will not
    this.fence = null; // of the block of code that is open, and the text node it grows in
  }

  push(text) {
    this.tail += text;
    if (this.fence) this.#grow();
    if (!this.fence) this.#render(true);
  }

  end(text = "") {
    this.tail += text;
    if (this.fence) this.#grow();
    if (this.fence && this.tail) this.#line(this.tail, "");
    else if (!this.fence) this.#render(false);
    this.tail = "";
  }

  #open() {
    return this.root.childNodes[this.done] ?? null;
  }

  #render(live) {
    const lines = this.tail.split("\n");
    const last = lines.length - 1; // the line that may go on
    const starts = [];
    const found = blocks(lines, 0, live, starts);
    patch(this.root, this.#open(), found);
    if (!live || !found.length) return;
    const start = starts.at(-1);
    const fence = start < last && fenceAt(lines[start]);
    const open = fence && !lines.slice(start + 1).some((l) => closes(l, fence));
    // A block is there for certain once its first two lines are whole; what came before it is finished.
    const kept = open ? starts.length - 1 : Math.max(0, starts.findLastIndex((s) => s + 1 < last));
    this.done += kept;
    this.tail = lines.slice(starts[kept]).join("\n");
    if (!open) return;
    this.fence = fence;
    const text = this.#open().querySelector("code");
    this.code = text.firstChild ?? text.appendChild(document.createTextNode(""));
    const complete = lines.slice(start + 1, last).map((l) => dedent(l, fence.indent));
    this.code.data = complete.map((l) => `${l}\n`).join("");
    this.tail = lines[last];
    this.#show();
  }

  #grow() {
    const lines = this.tail.split("\n");
    this.tail = lines.pop();
    this.#hide();
    for (let n = 0; n < lines.length; n++) {
      if (this.#line(lines[n])) {
        this.tail = [...lines.slice(n + 1), this.tail].join("\n");
        return;
      }
    }
    this.#show();
  }

  // A line of the open block of code: true where it ends the block.
  #line(line, end = "\n") {
    this.#hide();
    if (closes(line, this.fence)) {
      if (this.code.length) this.code.deleteData(this.code.length - 1, 1); // the newline before the end
      this.fence = null;
      this.done++;
      return true;
    }
    this.code.appendData(dedent(line, this.fence.indent) + end);
    return false;
  }

  // The line that is not whole yet is shown, unless it may be the end of the block.
  #show() {
    const partial = dedent(this.tail, this.fence.indent);
    this.shown = this.fence.mark.startsWith(partial.trim().slice(0, 3)) ? 0 : partial.length;
    if (this.shown) this.code.appendData(partial);
  }

  #hide() {
    if (this.shown) this.code.deleteData(this.code.length - this.shown, this.shown);
    this.shown = 0;
  }
}
