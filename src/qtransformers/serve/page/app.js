// The page: what is open, who answers, and what the keyboard does.

import { apiKey, getJson, setApiKey } from "./api.js";
import { Chat } from "./chat.js";
import { exported, imported, newConversation, path, titleOf } from "./conversation.js";
import { $, announce, bytes, download, el, iconButton, number, toast } from "./dom.js";
import { Images } from "./images.js";
import { buildSettings, showSettings } from "./settings.js";
import { keep, openStore, recall } from "./store.js";

const POLL_MS = 10_000;
const LOST_MS = 2_000;
const THEMES = ["auto", "light", "dark"];
const WHY_KEY = $("#key-why").textContent;
const narrow = matchMedia("(max-width: 760px)");
const coarse = matchMedia("(pointer: coarse)");

const store = await openStore();
const channel = "BroadcastChannel" in window ? new BroadcastChannel("qtransformers") : { postMessage() {} };
let conversations = (await store.all("conversations")).sort((a, b) => b.updated - a.updated);
let current = conversations.find((c) => c.id === recall("open")) ?? newConversation(recall("last", {}));
let models = [];
let lastUse = 0; // tokens of the context, by the latest answer
let lost = false; // the server did not answer

const input = $("#input");
const chat = new Chat($("#log"), { save, changed, used, act, copy, ask });
const images = new Images($("#images"), store, act);
const info = (id) => models.find((m) => m.id === id)?.qtransformers ?? {};

// Conversations

async function save(conversation) {
  if (!chat.running && conversation === current && !info(current.model).context_length) loadModels(); // it is loaded by now
  if (!conversation.leaf) return;
  const first = Object.values(conversation.messages).find((m) => m.role === "user");
  conversation.title ||= titleOf(first?.content ?? "") || "Conversation";
  conversations = [conversation, ...conversations.filter((c) => c.id !== conversation.id)].sort((a, b) => b.updated - a.updated);
  try {
    await store.put("conversations", conversation);
    channel.postMessage(conversation.id);
  } catch (e) {
    toast(`This conversation could not be kept: ${e.message}`);
  }
}

function changed() {
  const busy = Boolean(chat.running);
  $("#send").hidden = busy;
  $("#stop").hidden = !busy;
  $("#title").textContent = current.title || "New conversation";
  document.title = current.title ? `${current.title} · qtransformers` : "qtransformers";
  listed();
}

function open(conversation) {
  chat.stop();
  tab("chat");
  current = conversation;
  if (models.length && !models.some((m) => m.id === current.model)) current.model = defaultModel();
  keep("open", current.id);
  chat.show(current);
  showModel();
  changed();
  menu(false);
  input.focus();
}

function listed() {
  const rows = conversations.map((c) => {
    const name = el("button", { type: "button", class: "open", title: c.title, "aria-current": c.id === current.id ? "true" : null, onclick: () => open(c) }, c.title);
    const edit = iconButton("edit", `Rename “${c.title}”`, () => rename(c, row));
    const gone = iconButton("trash", `Delete “${c.title}”`, () => remove(c));
    const row = el("li", { class: c.id === current.id ? "current" : null, "data-id": c.id }, name, edit, gone);
    return row;
  });
  const focused = document.activeElement?.closest?.("#conversations li")?.dataset.id;
  if (!$("#conversations input")) $("#conversations").replaceChildren(...rows);
  if (focused) $(`#conversations [data-id="${focused}"] .open`)?.focus();
}

function rename(c, row) {
  const field = el("input", { "aria-label": "New name", maxlength: 80 });
  field.value = c.title;
  let over = false; // taking the field away blurs it, which would end it once more
  const done = (kept) => {
    if (over) return;
    over = true;
    const title = titleOf(field.value);
    field.remove();
    if (kept && title) {
      c.title = title;
      save(c);
    }
    changed();
    $(`#conversations [data-id="${c.id}"] .open`)?.focus();
  };
  field.addEventListener("keydown", (e) => {
    if (e.key === "Enter") done(true);
    if (e.key === "Escape") e.stopPropagation(), done(false);
  });
  row.replaceChildren(field);
  field.focus();
  field.select();
  field.addEventListener("blur", () => done(true));
}

async function remove(c) {
  if (c.id === current.id) chat.stop();
  await store.remove("conversations", c.id);
  conversations = conversations.filter((o) => o.id !== c.id);
  channel.postMessage(c.id);
  if (c.id === current.id) open(newConversation(current));
  else changed();
  toast(`“${c.title}” is deleted.`, () => save(c).then(changed), "Undo");
  announce("Deleted.");
}

channel.onmessage = async ({ data }) => {
  const fresh = await store.get("conversations", data);
  conversations = [...conversations.filter((c) => c.id !== data), ...(fresh ? [fresh] : [])].sort((a, b) => b.updated - a.updated);
  if (data === current.id && fresh && !chat.running) {
    current = fresh;
    chat.show(current);
  }
  changed();
};

// Models and the state of the server

const defaultModel = () => (models.find((m) => m.qtransformers?.kind !== "diffusion" && m.id === recall("model")) ?? chatModels()[0])?.id ?? "";
const chatModels = () => models.filter((m) => !["diffusion", "embedding"].includes(m.qtransformers?.kind));

async function loadModels(polling) {
  let found;
  try {
    found = await getJson("v1/models");
  } catch (e) {
    if (e.status !== 401) act("lost");
    else if (!polling) askKey(e);
    return e.status === 401;
  }
  models = found.data ?? [];
  const painters = models.filter((m) => m.qtransformers?.kind === "diffusion");
  $("#tabs").hidden = !painters.length;
  if (!painters.length) tab("chat");
  images.setModels(painters);
  if (painters.length && !chatModels().length) tab("images");
  if (!models.some((m) => m.id === current.model)) current.model = defaultModel();
  const names = chatModels().map((m) => m.id);
  const options = [...$("#model").options].map((o) => o.value);
  if (names.join("\n") !== options.join("\n")) $("#model").replaceChildren(...names.map((n) => el("option", { value: n }, n)));
  if (!$("#settings").open) showModel();
  const { memory_bytes } = found.qtransformers ?? {};
  $("#memory").textContent = memory_bytes ? `${bytes(memory_bytes)} of memory` : "";
  const loading = models.find((m) => m.id === current.model)?.state === "loading";
  lost = false;
  $("#banner").hidden = !loading;
  $("#banner").textContent = loading ? "The model is being loaded." : "";
  return true;
}

function showModel() {
  $("#model").value = current.model;
  showSettings($("#fields"), current, info(current.model).sampling);
  used(lastUse);
}

function used(tokens) {
  lastUse = tokens;
  const most = info(current.model).context_length;
  $("#context").hidden = !tokens;
  $("#context-text").textContent = most ? `${number(tokens)} of ${number(most)} tokens of context` : `${number(tokens)} tokens of context`;
  const bar = $("#context-bar");
  bar.hidden = !most;
  if (!most) return;
  bar.setAttribute("aria-valuemax", most);
  bar.setAttribute("aria-valuenow", Math.min(tokens, most));
  bar.style.setProperty("--part", `${Math.min(100, (100 * tokens) / most)}%`);
  bar.classList.toggle("full", tokens > 0.9 * most);
}

let timer;
async function poll() {
  clearTimeout(timer);
  const asked = $("#key-dialog").open || (document.hidden && !lost) || chat.running;
  const found = asked || (await loadModels(true));
  timer = setTimeout(poll, found ? POLL_MS : LOST_MS);
}

// What messages and errors ask for
function act(name, error) {
  if (name === "key") askKey(error);
  if (name === "new") open(newConversation(current));
  if (name === "models") loadModels().then(() => $("#model").focus());
  if (name === "lost") {
    if (!lost) timer = (clearTimeout(timer), setTimeout(poll, LOST_MS));
    lost = true;
    $("#banner").textContent = "The server cannot be reached. This page goes on as soon as it is back.";
    $("#banner").hidden = false;
  }
}

function askKey(error) {
  if ($("#key-dialog").open) return;
  const refused = error && apiKey(); // what the server says of a key; of none it need not say more than the page
  $("#key-why").textContent = refused ? `The server refused the key: ${error.message}` : WHY_KEY;
  $("#key-why").classList.toggle("field-error", Boolean(refused));
  $("#key").value = apiKey();
  $("#key-dialog").showModal();
  $("#key").select();
}

async function copy(text, button) {
  const told = () => {
    button.dataset.done = "";
    announce("Copied.");
    if (button.classList.contains("copy")) button.textContent = "Copied";
    else toast("Copied.");
  };
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(told, () => toast("The browser does not let this page copy."));
  const area = el("textarea", { class: "unseen" }); // a page from another machine without TLS has no clipboard
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  button.focus();
  told();
}

function ask(text) {
  input.value = text;
  $("#composer").requestSubmit();
}

// Around it

function menu(shown) {
  document.body.classList.toggle("side-open", shown);
  $("#menu").setAttribute("aria-expanded", String(shown));
  $("#stage").inert = shown && narrow.matches;
  if (shown) $("#new").focus();
  else if (narrow.matches) $("#menu").focus();
}

function tab(name) {
  for (const n of ["chat", "images"]) {
    $(`#${n}`).hidden = n !== name;
    $(`#tab-${n}`).setAttribute("aria-selected", String(n === name));
    $(`#tab-${n}`).tabIndex = n === name ? 0 : -1;
  }
  $("#model").hidden = name === "images";
}

function theme(name) {
  keep("theme", name);
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  const label = `Colours: ${{ auto: "as the system has them", light: "light", dark: "dark" }[name]}`;
  $("#theme").setAttribute("aria-label", label);
  $("#theme").title = label;
}

function grow() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}

input.addEventListener("input", () => (grow(), keep("draft", input.value)));
input.addEventListener("keydown", (e) => {
  if (e.key !== "Enter" || e.isComposing || e.shiftKey) return;
  if (coarse.matches && !(e.ctrlKey || e.metaKey)) return; // the keyboard of a phone has no other key for a new line
  e.preventDefault();
  $("#composer").requestSubmit();
});
$("#composer").addEventListener("submit", (e) => {
  e.preventDefault();
  const text = input.value;
  if (!text.trim() || chat.running) return;
  if (!current.model) return act("models");
  input.value = "";
  keep("draft", "");
  grow();
  keep("open", current.id);
  chat.say(text);
});
$("#stop").addEventListener("click", () => (chat.stop(), input.focus()));
addEventListener("keydown", (e) => {
  if (e.key !== "Escape" || $("dialog[open]")) return;
  if (document.body.classList.contains("side-open")) menu(false);
  else chat.stop();
});
addEventListener("pagehide", () => chat.running && save(current));
document.addEventListener("click", (e) => {
  const button = e.target.closest?.(".copy");
  if (button) copy(button.closest("figure").querySelector("code").textContent, button);
});
$("#stage").addEventListener("click", () => document.body.classList.contains("side-open") && menu(false), true);
$("#latest").addEventListener("click", () => chat.toEnd());
$("#new").addEventListener("click", () => open(newConversation(current)));
$("#menu").addEventListener("click", () => menu(!document.body.classList.contains("side-open")));
$("#model").addEventListener("change", (e) => {
  current.model = e.target.value;
  keep("model", current.model);
  kept();
  showModel();
});
$("#theme").addEventListener("click", () => theme(THEMES[(THEMES.indexOf(recall("theme", "auto")) + 1) % THEMES.length]));
for (const name of ["chat", "images"]) {
  $(`#tab-${name}`).addEventListener("click", () => tab(name));
  $(`#tab-${name}`).addEventListener("keydown", (e) => {
    if (e.key !== "ArrowLeft" && e.key !== "ArrowRight") return;
    const other = name === "chat" ? "images" : "chat";
    tab(other);
    $(`#tab-${other}`).focus();
  });
}

function kept() {
  keep("last", { model: current.model, system: current.system, sampling: current.sampling });
  save(current);
}

buildSettings($("#fields"), () => current, kept);
$("#open-settings").addEventListener("click", () => {
  showModel();
  $("#export-one").disabled = !current.leaf;
  $("#settings").showModal();
});
$("#settings").addEventListener("click", (e) => e.target === e.currentTarget && e.currentTarget.close());
$("#reset").addEventListener("click", () => {
  current.sampling = {};
  kept();
  showModel();
  announce("All sampling fields are the model’s own.");
});
const fileName = (name) => `${name.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "conversation"}.json`;
$("#export-one").addEventListener("click", () => download(fileName(current.title), exported([current])));
$("#export-all").addEventListener("click", () => download("conversations.json", exported(conversations)));
$("#import").addEventListener("click", () => $("#import-file").click());
$("#import-file").addEventListener("change", async (e) => {
  const [file] = e.target.files;
  e.target.value = "";
  try {
    const found = imported(await file.text());
    for (const c of found) await save(c);
    changed();
    toast(`${number(found.length)} ${found.length === 1 ? "conversation" : "conversations"} imported.`);
  } catch (error) {
    toast(error.message);
  }
  $("#settings").close();
});
$("#change-key").addEventListener("click", () => askKey());
$("#key-cancel").addEventListener("click", () => $("#key-dialog").close());
$("#key-form").addEventListener("submit", async () => {
  setApiKey($("#key").value.trim(), $("#key-remember").checked);
  await loadModels();
  const last = path(current).at(-1);
  if (last?.error?.action === "key" && !$("#key-dialog").open) chat.again(last);
});

theme(recall("theme", "auto"));
input.value = recall("draft", "");
grow();
$("#memory-only").hidden = store.lasting;
chat.show(current);
changed();
await loadModels();
poll();
if (!coarse.matches) input.focus();
