// What a request says beside its messages: one table, from which the drawer, its checks and the request derive.

import { $, el } from "./dom.js";

const MOST = 2 ** 31 - 1;
// name, label, least, most, step, what it does; no step: whole numbers
const MAIN = [
  ["temperature", "Temperature", 0, 100, 0.05, "0 always takes the likeliest token; higher is freer."],
  ["top_p", "Top-p", 0, 1, 0.01, "The fewest tokens that reach this probability together; 1 is off."],
  ["top_k", "Top-k", 0, MOST, 1, "Only so many of the likeliest tokens; 0 is off."],
  ["min_p", "Min-p", 0, 1, 0.01, "Only tokens at least this likely beside the likeliest; 0 is off."],
  ["max_tokens", "Longest answer", 1, MOST, 1, "In tokens. Empty: as long as the context lasts."],
  ["seed", "Seed", 0, Number.MAX_SAFE_INTEGER, 1, "The same seed gives the same answer. Empty: another one each time."],
];
const MORE = [
  ["repetition_penalty", "Repetition penalty", 0.001, 100, 0.01, "1 is off."],
  ["frequency_penalty", "Frequency penalty", -100, 100, 0.05, "For each time a token is in the answer; 0 is off."],
  ["presence_penalty", "Presence penalty", -100, 100, 0.05, "Once for each token in the answer; 0 is off."],
  ["penalty_range", "Penalty range", -1, MOST, 1, "Latest tokens these look at; -1 is all."],
  ["typical_p", "Typical-p", 0, 1, 0.01, "Tokens of nearly expected surprise; 1 is off."],
  ["top_n_sigma", "Top-n-sigma", 0, 1000, 0.1, "Logits within so many deviations of the largest; 0 is off."],
  ["dry_multiplier", "DRY multiplier", 0, 100, 0.05, "Makes what repeats the text dearer; 0 is off."],
  ["dry_base", "DRY base", 1, 100, 0.05, ""],
  ["dry_allowed_length", "DRY allowed length", 1, MOST, 1, "Shorter repetitions cost nothing."],
  ["xtc_probability", "XTC probability", 0, 1, 0.01, "Of leaving out the likeliest tokens; 0 is off."],
  ["xtc_threshold", "XTC threshold", 0, 1, 0.01, ""],
  ["dynatemp_range", "Dynamic temperature range", 0, 100, 0.05, "0 is off."],
  ["mirostat_tau", "Mirostat tau", 0, 100, 0.1, "Surprise in bits to aim for; 0 is off."],
  ["mirostat_eta", "Mirostat eta", 0, 1, 0.01, ""],
];
// name, label, what is wrong with the text or nothing, what the request is given, what it does
const TEXTS = [
  ["stop", "Stop texts", () => "", (s) => s.split("\n").filter(Boolean), "One a line. The answer ends before them."],
  ["regex", "Regular expression of the answer", () => "", (s) => s, "The answer as a whole matches it."],
  ["schema", "JSON Schema of the answer", (s) => notJson(s, false), JSON.parse, "The answer follows it."],
  ["tools", "Tools", (s) => notJson(s, true), JSON.parse, "A list as in OpenAI's API. Calls are shown, and you give the result."],
];
const NUMBERS = [...MAIN, ...MORE];

function notJson(text, list) {
  try {
    const value = JSON.parse(text);
    if (list ? Array.isArray(value) : value && typeof value === "object") return "";
  } catch (e) {
    return `This is not JSON: ${e.message}`;
  }
  return list ? "Expected a list: [ … ]" : "Expected an object: { … }";
}

export function wrong([, label, least, most, step], value) {
  const whole = step === 1;
  if (!Number.isFinite(value)) return `${label} is a number.`;
  if (whole && !Number.isInteger(value)) return `${label} is a whole number.`;
  const shown = (n) => n.toLocaleString("en", { maximumFractionDigits: 3 });
  return value < least || value > most ? `${label} is from ${shown(least)} to ${shown(most)}.` : "";
}

// The fields of a request, of what is valid in `sampling`.
export function requestFields(sampling) {
  const made = {};
  for (const row of NUMBERS) if (row[0] in sampling && !wrong(row, sampling[row[0]])) made[row[0]] = sampling[row[0]];
  const texts = {};
  for (const [name, , check, value] of TEXTS) if (sampling[name] && !check(sampling[name])) texts[name] = value(sampling[name]);
  if (texts.stop?.length) made.stop = texts.stop;
  if (texts.regex) made.regex = texts.regex;
  if (texts.tools?.length) made.tools = texts.tools;
  if (texts.schema) made.response_format = { type: "json_schema", json_schema: { name: "answer", schema: texts.schema } };
  return made;
}

function field(name, label, help, input) {
  const id = `set-${name}`;
  const error = el("p", { class: "field-error", id: `${id}-error`, role: "alert" });
  const helped = help && el("p", { class: "help", id: `${id}-help` }, help);
  input.id = id;
  input.name = name;
  input.setAttribute("aria-describedby", `${help ? `${id}-help ` : ""}${id}-error`);
  return el("div", { class: "field" }, el("label", { for: id }, label), input, helped, error);
}

function tell(input, message) {
  input.setAttribute("aria-invalid", String(Boolean(message)));
  $(`#${input.id}-error`).textContent = message;
}

// The drawer's fields. `read()` gives {system, sampling} that are changed; `changed` is called after it.
export function buildSettings(root, read, changed) {
  const put = (name, value) => {
    const { sampling } = read();
    if (value === "" || value === undefined) delete sampling[name];
    else sampling[name] = value;
    changed();
  };
  const numberField = (row) => {
    const [name, label, least, most, step, help] = row;
    const input = el("input", { type: "number", inputmode: "decimal", min: least, max: most, step: "any", autocomplete: "off" });
    input.addEventListener("input", () => {
      const value = input.value === "" && !input.validity.badInput ? "" : input.valueAsNumber;
      const message = value === "" ? "" : wrong(row, value);
      tell(input, message);
      if (!message) put(name, value);
    });
    return field(name, label, help, input, step);
  };
  const textField = ([name, label, check, , help]) => {
    const input = el("textarea", { rows: 2, spellcheck: "false" });
    input.addEventListener("input", () => {
      const message = input.value.trim() ? check(input.value) : "";
      tell(input, message);
      if (!message) put(name, input.value.trim() ? input.value : "");
    });
    return field(name, label, help, input);
  };
  const system = el("textarea", { rows: 4 });
  system.addEventListener("input", () => ((read().system = system.value), changed()));
  root.append(
    field("system", "System prompt", "What the model is told before the conversation.", system),
    el("div", { class: "fields" }, ...MAIN.map(numberField)),
    el("details", {}, el("summary", {}, "More sampling"), el("div", { class: "fields" }, ...MORE.map(numberField))),
    el("details", {}, el("summary", {}, "Stop texts, structure, tools"), ...TEXTS.map(textField)),
  );
}

// Shows the values of a conversation, and where they are empty the model's own.
export function showSettings(root, { system, sampling }, defaults = {}) {
  $("#set-system", root).value = system;
  for (const [name] of NUMBERS) {
    const input = $(`#set-${name}`, root);
    input.value = sampling[name] ?? "";
    input.placeholder = defaults[name] ?? (name === "seed" ? "random" : name === "max_tokens" ? "no limit" : "");
    tell(input, "");
  }
  for (const [name] of TEXTS) {
    $(`#set-${name}`, root).value = sampling[name] ?? "";
    tell($(`#set-${name}`, root), "");
  }
}
