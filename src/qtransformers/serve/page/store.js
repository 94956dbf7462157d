// Conversations in the browser's IndexedDB; in memory, with a warning, where there is none.

const NAME = "qtransformers";
const STORES = ["conversations", "images"];

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

class Memory {
  constructor() {
    this.kept = Object.fromEntries(STORES.map((s) => [s, new Map()]));
    this.lasting = false;
  }
  all = async (store) => [...this.kept[store].values()].map((v) => structuredClone(v));
  get = async (store, id) => structuredClone(this.kept[store].get(id));
  put = async (store, value) => void this.kept[store].set(value.id, structuredClone(value));
  remove = async (store, id) => void this.kept[store].delete(id);
}

class Disk {
  constructor(db) {
    this.db = db;
    this.lasting = true;
  }
  #store = (name, mode) => this.db.transaction(name, mode).objectStore(name);
  all = (store) => settled(this.#store(store, "readonly").getAll());
  get = (store, id) => settled(this.#store(store, "readonly").get(id));
  put = (store, value) => settled(this.#store(store, "readwrite").put(value));
  remove = (store, id) => settled(this.#store(store, "readwrite").delete(id));
}

export async function openStore() {
  try {
    const opening = indexedDB.open(NAME, 1);
    opening.onupgradeneeded = () => STORES.forEach((s) => opening.result.createObjectStore(s, { keyPath: "id" }));
    return new Disk(await settled(opening));
  } catch {
    return new Memory();
  }
}

// Small things that are read at the start: settings and what was open.
export function recall(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(`qtransformers.${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(`qtransformers.${name}`, JSON.stringify(value));
  } catch {
    // forbidden or full: the page works on without
  }
}
