// A conversation is a tree: editing a message or asking again adds a branch, and no answer is lost.
//
// {id, title, created, updated, model, system, sampling, leaf, messages: {id: {id, parent, role, content, ...}}}

const ROLES = ["user", "assistant", "tool"];
const MAX_TITLE = 80;
export const FORMAT = "qtransformers-conversations";

export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, "0")).join("");
}

export function newConversation(like = {}) {
  const now = Date.now();
  const { model = "", system = "", sampling = {} } = like;
  return { id: newId(), title: "", created: now, updated: now, model, system, sampling: { ...sampling }, leaf: null, messages: {} };
}

export function titleOf(text) {
  const line = text.trim().split("\n", 1)[0].replace(/\s+/g, " ");
  return line.length > MAX_TITLE ? `${line.slice(0, MAX_TITLE - 1)}…` : line;
}

export function addMessage(conversation, parent, role, fields = {}) {
  const message = { id: newId(), parent, role, content: "", created: Date.now(), ...fields };
  conversation.messages[message.id] = message;
  conversation.leaf = message.id;
  return message;
}

// From the first message to the leaf.
export function path({ messages, leaf }) {
  const found = [];
  for (let m = messages[leaf]; m; m = messages[m.parent]) found.push(m);
  return found.reverse();
}

export const siblings = ({ messages }, { parent }) => Object.values(messages).filter((m) => m.parent === parent);

// Shows the branch of `message`, to its latest end.
export function choose(conversation, message) {
  let leaf = message;
  for (let next = leaf; next; next = siblings(conversation, { parent: leaf.id }).at(-1)) leaf = next;
  conversation.leaf = leaf.id;
}

// What the API is sent: what has not been said is left out.
export function apiMessages(conversation) {
  const system = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  const said = path(conversation).filter((m) => m.role !== "assistant" || m.content || m.calls?.length);
  return [
    ...system,
    ...said.map(({ role, content, calls, call }) => ({
      role,
      content,
      ...(calls?.length && { tool_calls: calls.map(({ id, name, args }) => ({ id, type: "function", function: { name, arguments: args } })) }),
      ...(call && { tool_call_id: call }),
    })),
  ];
}

// Files

export const exported = (conversations) => JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);

const isText = (x) => typeof x === "string";
const isTextMap = (x) => x && typeof x === "object" && !Array.isArray(x);

function messageFrom(m, ids) {
  if (!isTextMap(m) || !ROLES.includes(m.role) || !isText(m.content)) throw new Error("A message has no role or no text.");
  const kept = { id: ids.get(m.id), parent: ids.get(m.parent) ?? null, role: m.role, content: m.content, created: Number(m.created) || 0 };
  for (const name of ["reasoning", "model", "status", "call"]) if (isText(m[name])) kept[name] = m[name];
  for (const name of ["tokens", "prompt", "cached", "speed", "wait", "thought"]) if (Number.isFinite(m[name])) kept[name] = m[name];
  if (Array.isArray(m.calls)) kept.calls = m.calls.map((c) => ({ id: String(c?.id), name: String(c?.name), args: String(c?.args) }));
  return kept;
}

// Conversations of a file that was exported, with ids of their own; Error that says what is wrong with it.
export function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("The file is not JSON. Choose one that “Export” has made.");
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) throw new Error(`The file has no “format”: “${FORMAT}”. Choose one that “Export” has made.`);
  return file.conversations.map((c) => {
    if (!isTextMap(c) || !isTextMap(c.messages)) throw new Error("A conversation of the file has no messages.");
    const given = Object.values(c.messages);
    const ids = new Map(given.map((m) => [m?.id, newId()]));
    const made = newConversation({ model: isText(c.model) ? c.model : "", system: isText(c.system) ? c.system : "" });
    if (isTextMap(c.sampling)) for (const [k, v] of Object.entries(c.sampling)) if (isText(v) || Number.isFinite(v)) made.sampling[k] = v;
    made.messages = Object.fromEntries(given.map((m) => [ids.get(m?.id), messageFrom(m, ids)]));
    for (const m of Object.values(made.messages)) untangle(made, m);
    made.title = titleOf(isText(c.title) ? c.title : "") || "Imported";
    made.created = Number(c.created) || made.created;
    made.updated = Number(c.updated) || made.updated;
    made.leaf = ids.get(c.leaf) ?? Object.keys(made.messages).at(-1) ?? null;
    return made;
  });
}

function untangle({ messages }, message) {
  const seen = new Set();
  for (let m = message; m; m = messages[m.parent]) {
    if (seen.has(m.id)) throw new Error("Messages of the file answer each other in a circle.");
    seen.add(m.id);
  }
}
