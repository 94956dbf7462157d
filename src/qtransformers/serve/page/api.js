// The server's OpenAI API: requests, streams of events, and errors as a person reads them.

const KEY = "qtransformers.key";
const safely = (f) => {
  try {
    return f();
  } catch {
    return null; // storage is forbidden: the key lasts as long as the page
  }
};
let key = safely(() => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY)) ?? "";

export const apiKey = () => key;

export function setApiKey(value, remember) {
  key = value;
  safely(() => sessionStorage.setItem(KEY, value));
  safely(() => (remember ? localStorage.setItem(KEY, value) : localStorage.removeItem(KEY)));
}

export class ApiError extends Error {
  constructor(status, error = {}, wait = 0) {
    super(error.message || `The server answered with status ${status}.`);
    this.status = status; // 0: no answer at all
    this.code = error.code ?? "";
    this.wait = wait; // seconds the server asks to wait
    this.details = error;
  }
}

async function failure(response) {
  const body = await response.json().catch(() => ({}));
  const error = typeof body.error === "object" && body.error ? body.error : { message: body.error ?? body.message };
  const wait = Number.parseFloat(response.headers.get("retry-after"));
  return new ApiError(response.status, error, Number.isFinite(wait) ? Math.min(wait, 300) : 0);
}

export async function request(path, { body, signal } = {}) {
  const headers = body ? { "content-type": "application/json" } : {};
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new ApiError(0, { message: "The server cannot be reached. Is it still running?" });
  }
  if (!response.ok) throw await failure(response);
  return response;
}

export const getJson = async (path, options) => (await request(path, options)).json();

// The data of server-sent events, parsed; an error among them is thrown, as is an end without [DONE].
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue; // a comment that keeps the connection open, or another field
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ApiError(event.error.status ?? 500, event.error);
        yield event;
      }
    }
  } catch (e) {
    if (e.name === "AbortError" || e instanceof ApiError) throw e;
    throw new ApiError(0, { message: "The connection broke while the answer was coming." });
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new ApiError(0, { message: "The server ended the answer before it was whole." });
}
