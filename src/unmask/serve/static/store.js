// What the page shows, as one object; the sentence in it can be undone and redone, and all of it stands in the address.

const MOST = 200; // steps that can be undone
const LONGEST = 6000; // characters of a text that still goes into a link

const START = { view: "fill", text: "", hidden: [], picked: [], active: 0, one: "", other: "", compare: false, only: "", question: "" };

export function createStore(initial) {
  let state = { ...START, ...initial };
  const past = [];
  const future = [];
  const listeners = [];
  const sentence = ({ text, hidden, picked }) => ({ text, hidden, picked });
  const change = (next, why) => {
    const before = state;
    state = { ...state, ...next };
    for (const listener of listeners) listener(state, before, why);
  };
  const step = (from, to) => {
    if (!from.length) return false;
    to.push(sentence(state));
    change(from.pop(), "step");
    return true;
  };
  return {
    get: () => state,
    listen: (listener) => listeners.push(listener),
    /** Change what is shown; `record` makes a change of the sentence one that can be undone. */
    set(next, { record = true, why = "" } = {}) {
      if (record && ["text", "hidden", "picked"].some((name) => name in next && String(next[name]) !== String(state[name]))) {
        past.push(sentence(state));
        if (past.length > MOST) past.shift();
        future.length = 0;
      }
      change(next, why);
    },
    /** Make what was typed since `before` one step back. */
    record(before) {
      if (before.text === state.text && String(before.hidden) === String(state.hidden)) return;
      past.push(sentence(before));
      future.length = 0;
      change({}, "recorded");
    },
    undo: () => step(past, future),
    redo: () => step(future, past),
    canUndo: () => past.length > 0,
    canRedo: () => future.length > 0,
  };
}

/** Return the fragment of an address that brings a state back; null for a text that is too long for one. */
export function toFragment(state) {
  if (state.text.length > LONGEST) return null;
  const given = new URLSearchParams();
  if (state.view !== "fill") given.set("view", state.view);
  given.set("text", state.text);
  if (state.hidden.length) given.set("hide", state.hidden.join("."));
  if (state.one) given.set("model", state.one);
  if (state.compare && state.other) given.set("with", state.other);
  if (state.only.trim()) given.set("only", state.only);
  if (state.question.trim()) given.set("question", state.question);
  return `#${given}`;
}

/** Return what a fragment says of a state; null where it says nothing. */
export function fromFragment(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  if (!given.has("text")) return null;
  const places = (given.get("hide") ?? "").split(".").filter((part) => /^\d+$/.test(part));
  return {
    view: given.get("view") ?? "fill",
    text: given.get("text"),
    hidden: [...new Set(places.map(Number))].sort((a, b) => a - b),
    picked: [],
    active: 0,
    one: given.get("model") ?? "",
    other: given.get("with") ?? "",
    compare: given.has("with"),
    only: given.get("only") ?? "",
    question: given.get("question") ?? "",
  };
}
