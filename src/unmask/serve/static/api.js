// What the page asks the server. A key is kept for as long as the tab lives, and is never part of an address.

const KEY = "unmask.key";

/** What went wrong: `kind` is refused (the request), busy, key, failed (the server) or offline. */
export class ApiError extends Error {
  constructor(kind, message, retrySeconds = null) {
    super(message);
    this.kind = kind;
    this.retrySeconds = retrySeconds;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export const models = (signal) => call("models", undefined, signal);
export const fill = (body, signal) => call("api/fill", body, signal);
export const score = (body, signal) => call("api/score", body, signal);
export const task = (model, body, signal) => call(`models/${encodeURIComponent(model)}`, body, signal);

async function call(path, body, signal) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const method = body === undefined ? "GET" : "POST";
  let response;
  let text;
  try {
    response = await fetch(path, { method, headers, body: JSON.stringify(body), signal, cache: "no-store", credentials: "omit" });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("offline", "The server cannot be reached.");
  }
  let answer = null;
  try {
    answer = JSON.parse(text);
  } catch {
    // what is no JSON is judged by its status below
  }
  if (response.ok && answer !== null) return answer;
  throw wrong(response, answer);
}

function wrong(response, answer) {
  const { status } = response;
  const said = typeof answer?.error === "string" ? answer.error : null;
  if (status === 401 || status === 403) return new ApiError("key", said ?? "The server wants a key.");
  if (status === 429 || status === 503) {
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    return new ApiError("busy", said ?? "The server is busy.", Math.min(seconds, 30));
  }
  if (status >= 400 && status < 500) return new ApiError("refused", said ?? `The server refuses the request (status ${status}).`);
  return new ApiError("failed", `The server failed (status ${status})${said ? `: ${said}` : "."}`);
}

/** Return a function that runs work and gives {value} or {error}, or null where newer work was begun meanwhile, which also ends the older. */
export function latest() {
  let current = null;
  const run = async (work) => {
    current?.abort();
    const own = new AbortController();
    current = own;
    try {
      const value = await work(own.signal);
      return current === own ? { value } : null;
    } catch (error) {
      if (current !== own) return null;
      if (error instanceof ApiError) return { error };
      throw error;
    }
  };
  run.stop = () => {
    current?.abort();
    current = null;
  };
  return run;
}
