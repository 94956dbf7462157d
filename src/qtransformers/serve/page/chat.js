// The messages of one conversation on the page, and answers as they come.

import { ApiError, events, request } from "./api.js";
import { addMessage, apiMessages, choose, path, siblings } from "./conversation.js";
import { $, announce, el, iconButton, number } from "./dom.js";
import { MarkdownStream } from "./markdown.js";
import { requestFields } from "./settings.js";

const SAVE_MS = 1000;
const IDLE = 6; // of the time is left to the page for each part spent on drawing
const NEAR = 60; // pixels from the end that count as the end
const LEAST_SECONDS = 0.2; // of an answer that tell how fast it comes: shorter ones came in one read
const TRIES = 5; // while the server says that it is full
const MAX_SPOKEN = 3000; // characters of an answer that are read aloud
const ASK = ["Tell me a story about a brave fox.", "Explain how tides work, in three sentences.", "Compare tea and coffee in a table."];

const code = (e) => e.details?.code ?? e.code;
// When, what to say before the server's own words, and which button beside “Try again”
const ERRORS = [
  [(e) => e.status === 0, "No connection"],
  [(e) => e.status === 401, "The server wants a key", "key"],
  [(e) => code(e) === "context_length_exceeded", "Too long for this model", "new"],
  [(e) => e.status === 404, "This model is not there any more", "models"],
  [(e) => e.status === 429, "Too many requests"],
  [(e) => e.status === 503, "The server is full"],
  [(e) => e.status >= 500, "The server failed"],
  [() => true, "The server refused this"],
];

export class Chat {
  // `app`: {save(conversation), sampling(), changed(), used(tokens), act(name, error)}
  constructor(log, app) {
    this.log = log;
    this.app = app;
    this.conversation = null;
    this.running = null; // {abort, message} of the answer that comes
    this.pinned = true; // the end of the conversation is kept in sight
    this.top = 0;
    log.addEventListener("scroll", () => this.#scrolled());
    new ResizeObserver(() => this.#follow()).observe(log);
  }

  show(conversation) {
    this.conversation = conversation;
    this.pinned = true;
    this.draw();
  }

  draw() {
    const messages = path(this.conversation);
    const there = new Map([...this.log.children].map((e) => [e.dataset.key, e]));
    const made = messages.map((m) => there.get(this.#key(m)) ?? this.#message(m));
    this.log.replaceChildren(...(made.length ? made : [this.#empty()]));
    const last = messages.findLast((m) => m.tokens !== undefined);
    this.app.used(last ? last.prompt + last.tokens : 0);
    this.#follow();
  }

  // What is drawn stays as it is while this does.
  #key(m) {
    const busy = this.running?.message === m;
    return [m.id, siblings(this.conversation, m).length, m.id === this.conversation.leaf, busy, m.content.length, m.status].join();
  }

  say(text) {
    addMessage(this.conversation, this.conversation.leaf, "user", { content: text });
    return this.#answerTo(this.conversation.leaf);
  }

  again(message) {
    return this.#answerTo(message.parent);
  }

  edited(message, text) {
    addMessage(this.conversation, message.parent, "user", { content: text });
    return this.#answerTo(this.conversation.leaf);
  }

  toolResult(message, texts) {
    let parent = message.id;
    message.calls.forEach((c, n) => (parent = addMessage(this.conversation, parent, "tool", { content: texts[n], call: c.id }).id));
    return this.#answerTo(parent);
  }

  stop() {
    this.running?.abort.abort();
  }

  // An answer

  async #answerTo(parent) {
    if (this.running) return;
    const { conversation } = this;
    const message = addMessage(conversation, parent, "assistant", { model: conversation.model });
    const running = { abort: new AbortController(), message };
    this.running = running;
    this.pinned = true;
    const save = () => this.app.save(conversation);
    save();
    this.app.changed();
    this.draw();
    if (document.activeElement === document.body) this.log.focus({ preventScroll: true }); // its button has gone
    announce("The answer is coming.");
    const view = new Answer(this.log.lastElementChild, message, () => this.conversation === conversation && this.#follow());
    let saved = performance.now();
    try {
      for await (const event of this.#events(conversation, parent, running.abort.signal, view)) {
        view.take(event);
        if (performance.now() - saved > SAVE_MS) {
          saved = performance.now();
          save();
        }
      }
    } catch (e) {
      if (e.name === "AbortError") message.status = "stopped";
      else this.#failed(message, e);
    }
    view.end();
    this.running = null;
    conversation.updated = Date.now();
    await save();
    this.app.changed();
    if (this.conversation !== conversation) return;
    this.#complete(view.root, message);
    this.#follow();
    if (message.tokens !== undefined) this.app.used(message.prompt + message.tokens);
    const how = message.error ? `${message.error.title}. ${message.error.text}` : message.status === "stopped" ? "Stopped." : "";
    announce(how || message.content.slice(0, MAX_SPOKEN));
  }

  #failed(message, e) {
    const error = e instanceof ApiError ? e : new ApiError(500, { message: `The page failed: ${e.message}` });
    const [, title, action] = ERRORS.find(([when]) => when(error));
    const text = error.message.charAt(0).toUpperCase() + error.message.slice(1);
    message.error = { title, text, action };
    message.status = "failed";
    this.app.act(error.status === 0 ? "lost" : error.status === 401 ? "key" : error.status === 404 ? "models" : "", error);
  }

  async *#events(conversation, parent, signal, view) {
    const messages = apiMessages({ ...conversation, leaf: parent });
    const body = { model: conversation.model, messages, stream: true, stream_options: { include_usage: true }, ...requestFields(conversation.sampling) };
    for (let tries = 1; ; tries++) {
      try {
        const response = await request("v1/chat/completions", { body, signal });
        view.begin();
        return yield* events(response);
      } catch (e) {
        if (!(e.status === 503 || e.status === 429) || !e.wait || tries === TRIES || view.begun) throw e;
        for (let left = Math.ceil(e.wait); left > 0; left--) {
          view.tell(`${ERRORS.find(([when]) => when(e))[1]}. Trying again in ${left} s.`);
          await pause(1000, signal);
        }
        view.tell("Trying again.");
      }
    }
  }

  // Elements

  #message(m) {
    const root = this.#element(m);
    root.dataset.key = this.#key(m);
    root.dataset.branch = m.parent;
    return root;
  }

  #element(m) {
    if (m.role === "user") return this.#user(m);
    if (m.role === "tool") return el("article", { class: "message tool" }, el("h2", { class: "who" }, "Result of the tool"), el("div", { class: "text" }, m.content));
    const root = el("article", { class: "message assistant", "aria-busy": "true" }, el("h2", { class: "who" }, m.model || "Answer"), fold(m), markdown(m));
    if (this.running?.message !== m) return this.#complete(root, m);
    root.append(el("p", { class: "note waiting" }, "Waiting for the model"));
    return root;
  }

  // What stands below an answer that is over. What is there stays: somebody may have selected a part of it.
  #complete(root, m) {
    root.removeAttribute("aria-busy");
    root.dataset.key = this.#key(m);
    $(":scope > .waiting", root)?.remove();
    for (const c of m.calls ?? []) root.append(call(c));
    if (m.error) root.append(this.#error(m));
    else if (m.status) root.append(el("p", { class: "note" }, { stopped: "Stopped.", length: "Cut off: the answer is as long as it may be.", content_filter: "Cut off by a text that is banned." }[m.status] ?? ""));
    if (m.calls?.length && m.id === this.conversation.leaf && !m.error) root.append(this.#results(m));
    const copy = iconButton("copy", "Copy the answer", (e) => this.app.copy(m.content, e.currentTarget));
    const again = iconButton("again", "Another answer", () => this.again(m));
    root.append(el("div", { class: "actions" }, ...this.#branches(m), m.content && copy, !m.error && again, el("span", { class: "stats" }, stats(m))));
    return root;
  }

  #user(m) {
    const text = el("div", { class: "text" }, m.content);
    const copy = iconButton("copy", "Copy the message", (e) => this.app.copy(m.content, e.currentTarget));
    const edit = iconButton("edit", "Edit and send again", () => this.#edit(m, root));
    const root = el("article", { class: "message user" }, el("h2", { class: "unseen" }, "You"), text, el("div", { class: "actions" }, ...this.#branches(m), copy, edit));
    return root;
  }

  #branches(m) {
    const all = siblings(this.conversation, m);
    const at = all.findIndex((s) => s.id === m.id);
    if (all.length < 2) return [];
    const go = (step) => {
      if (this.running) return;
      choose(this.conversation, all[at + step]);
      this.app.save(this.conversation);
      this.draw();
      const same = [...this.log.children].find((c) => c.dataset.branch === String(m.parent));
      $(`[data-step="${step}"]`, same)?.focus();
    };
    const button = (name, label, step) => iconButton(name, label, () => go(step), { disabled: !all[at + step], "data-step": step });
    return [button("back", "Earlier version", -1), el("span", {}, `${at + 1}/${all.length}`), button("next", "Later version", 1)];
  }

  #edit(m, root) {
    const input = el("textarea", { "aria-label": "Edit the message", rows: Math.min(12, m.content.split("\n").length + 1) });
    input.value = m.content;
    const back = () => {
      const fresh = this.#message(m);
      root.replaceWith(fresh);
      fresh.querySelector('[aria-label^="Edit"]').focus();
    };
    const form = el("form", { class: "edit" }, input, el("div", { class: "row end" }, el("button", { type: "button", onclick: back }, "Cancel"), el("button", { class: "primary" }, "Send")));
    form.addEventListener("submit", (e) => {
      e.preventDefault();
      if (input.value.trim() && !this.running) this.edited(m, input.value);
    });
    form.addEventListener("keydown", (e) => {
      if (e.key === "Escape") e.stopPropagation(), back();
      if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) form.requestSubmit();
    });
    root.replaceChildren(form);
    input.focus();
  }

  #results(m) {
    const inputs = m.calls.map((c) => el("textarea", { rows: 2, "aria-label": `Result of ${c.name}`, placeholder: `Result of ${c.name}` }));
    const form = el("form", { class: "edit" }, ...inputs, el("div", { class: "row end" }, el("button", { class: "primary" }, "Send result")));
    form.addEventListener("submit", (e) => {
      e.preventDefault();
      this.toolResult(m, inputs.map((i) => i.value));
    });
    return form;
  }

  #error(m) {
    const { title, text, action } = m.error;
    const label = { key: "Enter a key", new: "New conversation", models: "Choose a model" }[action];
    const more = label && el("button", { type: "button", onclick: () => this.app.act(action) }, label);
    const again = el("button", { type: "button", onclick: () => this.again(m) }, "Try again");
    return el("div", { class: "note error" }, el("strong", {}, title), el("span", {}, text), el("div", { class: "row" }, again, more));
  }

  #empty() {
    const asks = ASK.map((text) => el("button", { type: "button", onclick: () => this.app.ask(text) }, text));
    return el("div", { class: "empty" }, el("img", { src: "page/icon.svg", alt: "", width: 56, height: 56 }), el("h2", {}, "What shall we talk about?"), el("p", {}, "The model runs on this server. What you write is kept in your browser only."), el("div", { class: "row" }, ...asks));
  }

  // Scrolling: the end is followed until the reader scrolls up or selects text.

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.log;
    const end = scrollHeight - clientHeight - scrollTop < NEAR;
    if (end) this.pinned = true;
    else if (scrollTop < this.top - 1) this.pinned = false;
    this.top = scrollTop;
    $("#latest").hidden = end;
  }

  toEnd() {
    this.pinned = true;
    this.#follow();
  }

  #follow() {
    const selection = getSelection();
    const selecting = selection && !selection.isCollapsed && this.log.contains(selection.anchorNode);
    if (this.pinned && !selecting) this.log.scrollTop = this.log.scrollHeight;
    this.#scrolled();
  }
}

// What comes of one answer, drawn at most once a frame and with time to spare.
class Answer {
  constructor(root, message, drawn) {
    Object.assign(this, { root, message, drawn, begun: false });
    this.note = $(".waiting", root);
    this.body = new MarkdownStream($(":scope > .md", root));
    this.waiting = { content: "", reasoning: "" };
    this.started = performance.now();
    this.pieces = 0;
  }

  begin() {
    this.started = performance.now();
    this.begun = true;
    this.tell("Reading the prompt");
  }

  tell(text) {
    this.note.textContent = text;
    if (!this.begun) announce(text);
  }

  take({ choices = [], usage }) {
    const { message } = this;
    if (usage) {
      message.prompt = usage.prompt_tokens;
      message.tokens = usage.completion_tokens;
      message.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    }
    const [choice] = choices;
    if (!choice) return;
    const { content, reasoning_content, reasoning = reasoning_content, tool_calls } = choice.delta ?? {};
    if (choice.finish_reason && choice.finish_reason !== "stop" && choice.finish_reason !== "tool_calls") message.status = choice.finish_reason;
    if (!content && !reasoning && !tool_calls) return;
    const now = performance.now();
    this.first ??= now;
    this.last = now;
    this.pieces++;
    if (reasoning) {
      message.reasoning = (message.reasoning ?? "") + reasoning;
      this.waiting.reasoning += reasoning;
      message.thought = (now - this.first) / 1000;
    }
    if (content) {
      message.content += content;
      this.waiting.content += content;
    }
    for (const c of tool_calls ?? []) this.#call(c);
    this.#schedule();
  }

  #call({ index = 0, id, function: f = {} }) {
    const calls = (this.message.calls ??= []);
    const c = (calls[index] ??= { id: "", name: "", args: "" });
    c.id = id ?? c.id;
    c.name += f.name ?? "";
    c.args += f.arguments ?? "";
  }

  #schedule() {
    if (this.frame) return;
    const wait = (this.next ?? 0) - performance.now();
    const draw = () => (this.frame = requestAnimationFrame(() => this.#draw()));
    this.frame = true;
    if (wait > 0) setTimeout(draw, wait);
    else draw();
  }

  #draw() {
    this.frame = null;
    if (this.ended) return;
    const started = performance.now();
    this.#show();
    this.drawn();
    this.next = performance.now() + IDLE * (performance.now() - started);
  }

  #show() {
    const { message, root, waiting } = this;
    if (waiting.reasoning) {
      if (!this.thoughts) {
        const box = fold({ reasoning: " " });
        $(".fold", root)?.replaceWith(box);
        this.thoughts = new MarkdownStream($(".md", box));
      }
      this.thoughts.push(waiting.reasoning);
    }
    if (waiting.content) this.body.push(waiting.content);
    this.waiting = { content: "", reasoning: "" };
    const seconds = (this.last - this.first) / 1000;
    const speed = this.pieces > 8 && seconds > LEAST_SECONDS ? `, about ${number((this.pieces - 1) / seconds)} pieces a second` : "";
    this.tell(message.calls ? "Calling a tool" : message.content ? `Writing${speed}` : `Reasoning${speed}`);
  }

  end() {
    const { message } = this;
    if (this.waiting.content || this.waiting.reasoning) this.#show();
    this.ended = true;
    this.body.end();
    this.thoughts?.end();
    message.wait = this.first ? (this.first - this.started) / 1000 : undefined;
    const seconds = (this.last - this.first) / 1000;
    if (message.tokens > 1 && seconds > LEAST_SECONDS) message.speed = (message.tokens - 1) / seconds;
    const summary = this.thoughts && $("summary", this.root);
    if (summary) summary.textContent = thought(message);
  }
}

const thought = (m) => (m.thought ? `Reasoning, ${number(m.thought, 1)} s` : "Reasoning");

function fold(m) {
  const made = el("details", { class: "fold", hidden: !m.reasoning });
  const body = el("div", { class: "md" });
  if (m.reasoning?.trim()) new MarkdownStream(body).end(m.reasoning);
  made.append(el("summary", {}, thought(m)), body);
  return made;
}

function markdown(m) {
  const body = el("div", { class: "md" });
  if (m.content) new MarkdownStream(body).end(m.content);
  return body;
}

function call({ name, args }) {
  let shown = args;
  try {
    shown = JSON.stringify(JSON.parse(args), null, 2);
  } catch {
    // not whole, or no JSON: as it is
  }
  return el("details", { class: "fold call" }, el("summary", {}, `Calls ${name}`), el("pre", {}, shown));
}

function stats(m) {
  const said = [];
  if (m.tokens !== undefined) said.push(`${number(m.tokens)} ${m.tokens === 1 ? "token" : "tokens"}`);
  if (m.speed) said.push(`${number(m.speed, m.speed < 10 ? 1 : 0)} tokens/s`);
  if (m.wait) said.push(`first after ${m.wait < 1 ? `${number(1000 * m.wait)} ms` : `${number(m.wait, 1)} s`}`);
  return said.join(" · ");
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(new DOMException("stopped", "AbortError"))), { once: true });
  });
}
