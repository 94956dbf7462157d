// Pictures of a diffusion model: asked for, shown as they come, kept in the browser.

import { ApiError, events, request } from "./api.js";
import { newId } from "./conversation.js";
import { $, announce, el, iconButton, number } from "./dom.js";

const MOST = 2 ** 31 - 1;
// name, label, least, most, step
const FIELDS = [
  ["width", "Width", 16, 4096, 8],
  ["height", "Height", 16, 4096, 8],
  ["steps", "Steps", 1, 500, 1],
  ["guidance_scale", "Guidance", 0, 50, 0.1],
  ["seed", "Seed", 0, MOST, 1],
];

export class Images {
  constructor(root, store, act) {
    Object.assign(this, { root, store, act, models: [] });
    this.model = el("select", { id: "image-model", name: "model" });
    this.prompt = el("textarea", { id: "image-prompt", rows: 3, required: true });
    this.avoid = el("input", { id: "image-avoid" });
    const field = (label, input) => el("div", { class: "field" }, el("label", { for: input.id }, label), input);
    this.inputs = FIELDS.map(([name, , min, max, step]) => el("input", { id: `image-${name}`, name, type: "number", min, max, step }));
    this.go = el("button", { class: "primary" }, "Make a picture");
    this.halt = el("button", { type: "button", hidden: true, onclick: () => this.abort?.abort() }, "Stop");
    this.progress = el("progress", { hidden: true, max: 1, "aria-label": "Progress" });
    this.note = el("p", { class: "note", role: "status" });
    this.gallery = el("ul", { class: "gallery", "aria-label": "Pictures" });
    const numbers = el("div", { class: "fields" }, ...FIELDS.map(([, label], n) => field(label, this.inputs[n])));
    const form = el("form", { id: "image-form" }, field("Model", this.model), field("What to show", this.prompt), field("What to avoid", this.avoid), numbers, el("div", { class: "row" }, this.go, this.halt), this.progress, this.note);
    form.addEventListener("submit", (e) => {
      e.preventDefault();
      this.make();
    });
    this.model.addEventListener("change", () => this.#defaults());
    root.append(el("h1", { class: "unseen" }, "Images"), form, this.gallery);
  }

  async setModels(models) {
    if (!models.length) return;
    const first = !this.models.length;
    this.models = models;
    this.model.replaceChildren(...models.map((m) => el("option", { value: m.id }, m.id)));
    this.#defaults();
    if (!first) return;
    const kept = (await this.store.all("images")).sort((a, b) => b.created - a.created);
    this.gallery.append(...kept.map((i) => this.#figure(i)));
  }

  #defaults() {
    const { images = {} } = this.models.find((m) => m.id === this.model.value)?.qtransformers ?? {};
    for (const input of this.inputs) {
      input.placeholder = images[input.name] ?? (input.name === "seed" ? "random" : "");
      if (images.max?.[input.name]) input.max = images.max[input.name];
    }
  }

  #body() {
    const value = Object.fromEntries(this.inputs.map((i) => [i.name, i.value === "" ? undefined : i.valueAsNumber]));
    const { images = {} } = this.models.find((m) => m.id === this.model.value)?.qtransformers ?? {};
    const { width = images.width, height = images.height, ...rest } = value;
    const size = width && height ? `${width}x${height}` : undefined;
    return { model: this.model.value, prompt: this.prompt.value, negative_prompt: this.avoid.value || undefined, size, response_format: "b64_json", stream: true, ...rest };
  }

  async make() {
    if (this.abort) return;
    this.abort = new AbortController();
    const started = performance.now();
    const body = this.#body();
    this.#busy(true, "Waiting for the model");
    try {
      const response = await request("v1/images/generations", { body, signal: this.abort.signal });
      for await (const e of events(response)) {
        if (e.step) this.#step(e);
        if (!e.b64_json) continue;
        const { prompt, model, size } = body;
        const made = { id: newId(), created: Date.now(), prompt, model, size, seed: e.seed, b64: e.b64_json };
        await this.store.put("images", made);
        this.gallery.prepend(this.#figure(made));
      }
      this.#busy(false, `Made in ${number((performance.now() - started) / 1000, 1)} s.`);
      announce("The picture is ready.");
    } catch (e) {
      if (e.name !== "AbortError" && !(e instanceof ApiError)) throw e;
      this.#busy(false, e.name === "AbortError" ? "Stopped." : e.message);
      if (e.status === 401) this.act("key", e);
      if (e.status === 0) this.act("lost");
    } finally {
      this.abort = null;
    }
  }

  #step({ step, steps }) {
    this.progress.value = step / steps;
    this.note.textContent = `Step ${step} of ${steps}`;
  }

  #busy(busy, text) {
    this.go.hidden = busy;
    this.halt.hidden = !busy;
    this.progress.hidden = !busy;
    this.progress.removeAttribute("value");
    this.note.textContent = text;
  }

  #figure(i) {
    const gone = iconButton("trash", "Delete the picture", async () => {
      await this.store.remove("images", i.id);
      row.remove();
    });
    const src = `data:image/png;base64,${i.b64}`;
    const save = iconButton("save", "Save the picture", () => el("a", { href: src, download: `${i.id}.png` }).click());
    const said = [i.model, i.size, i.seed !== undefined && `seed ${i.seed}`].filter(Boolean).join(" · ");
    const row = el("li", {}, el("figure", {}, el("img", { src, alt: i.prompt, loading: "lazy" }), el("figcaption", {}, el("div", {}, i.prompt), el("div", {}, said), el("div", { class: "row" }, save, gone))));
    return row;
  }
}
