// The sheet of paper on which the sentence stands: read as words to click at, or edited. Both have the same measures, so nothing jumps.

import { $, el } from "./dom.js";
import { partsOf, retype } from "./words.js";

const MANY = 2000; // words that are made into buttons; a longer text is shown as it is, and says so

/** Make the sheet work; `views` say what stands on it when it is read. */
export function createSheet(store, views) {
  const [paper, read, mirror, area] = ["paper", "read", "mirror", "text"].map($);
  let before = null; // the sentence as it was when editing began

  const isEditing = () => before !== null;

  function edit({ caret = null } = {}) {
    if (isEditing()) return;
    const { text, hidden, picked } = store.get();
    before = { text, hidden, picked };
    area.value = text;
    draw();
    area.focus({ preventScroll: true });
    area.setSelectionRange(caret ?? text.length, caret ?? text.length);
  }

  function done({ focus = false } = {}) {
    if (!isEditing()) return;
    const started = before;
    before = null;
    store.record(started);
    store.set({}, { why: "typed-done" });
    draw();
    if (focus) first()?.focus({ preventScroll: true });
  }

  const first = () => read.querySelector('[tabindex="0"]') ?? $("edit");

  function draw() {
    const state = store.get();
    const editing = isEditing();
    read.hidden = editing;
    mirror.hidden = area.hidden = !editing;
    $("edit").lastElementChild.textContent = editing ? "Done" : "Edit";
    $("undo").disabled = !store.canUndo();
    $("redo").disabled = !store.canRedo();
    if (editing) {
      if (area.value !== state.text) area.value = state.text;
      const shown = partsOf(state).map((part) => (part.mask === null ? part.text : el("mark", {}, part.text)));
      mirror.replaceChildren(...shown, "\u200b"); // an empty last line has a height, too
    } else {
      views[state.view].read(read, state);
      ready(read);
    }
  }

  area.addEventListener("input", () => store.set(retype(store.get(), area.value), { record: false, why: "typed" }));
  area.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if ((event.key === "Enter" && !event.shiftKey) || event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation();
      done({ focus: true });
    }
  });
  area.addEventListener("blur", () => document.hasFocus() && done());
  // what is not a word is where one writes on
  paper.addEventListener("click", (event) => {
    const isButton = event.target.closest('[role="button"]') !== null;
    if (!isButton && getSelection().isCollapsed) edit();
  });
  // pressing the button would take the focus from the text first, and end what it is to end
  $("edit").addEventListener("mousedown", (event) => event.preventDefault());
  $("edit").addEventListener("click", () => (isEditing() ? done({ focus: true }) : edit()));
  return { edit, done, draw, isEditing, first };
}

/** Return the nodes of a sentence as words to click at. */
export function words(state, { press, current }) {
  const parts = partsOf(state);
  if (parts.length > 2 * MANY) {
    return [el("span", { class: "plain" }, state.text)];
  }
  const count = parts.filter((part) => part.mask !== null).length;
  return parts.map((part) => {
    if (part.kind === "gap") return part.text;
    const isMask = part.mask !== null;
    const names = ["word", isMask && "masked", part.picked && "picked", isMask && part.mask === current && "current"];
    const name = part.kind === "blank" ? `blank, mask ${part.mask + 1}` : isMask ? `mask ${part.mask + 1}, hides ${part.text}` : part.text;
    const given = { class: names.filter(Boolean).join(" "), role: "button", "data-key": `w${part.start}`, "aria-label": name };
    if (part.kind === "word") given["aria-pressed"] = String(isMask);
    if (isMask && count > 1) given["data-number"] = part.mask + 1;
    return el("span", { ...given, tabindex: "-1", onclick: () => press(part) }, part.text);
  });
}

export const tooMany = (state) => partsOf(state).length > 2 * MANY;

/** Make one of the buttons of a group the one that the tab key reaches: that which had the focus last. */
export function ready(group) {
  const all = [...group.querySelectorAll('[role="button"]')];
  const chosen = all.find((one) => one === document.activeElement) ?? all.find((one) => one.dataset.key === group.dataset.last) ?? all[0];
  for (const one of all) one.tabIndex = one === chosen ? 0 : -1;
}

/** Let arrows go from button to button of a group; `below` is called where no line is left. */
export function rove(group, below) {
  group.addEventListener("focusin", (event) => {
    if (event.target.dataset.key === undefined) return;
    group.dataset.last = event.target.dataset.key;
    ready(group);
  });
  group.addEventListener("keydown", (event) => {
    const all = [...group.querySelectorAll('[role="button"]')];
    const here = all.indexOf(document.activeElement);
    if (here < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = document.dir === "rtl" || getComputedStyle(group).direction === "rtl" ? -1 : 1;
    const to = { ArrowRight: here + step, ArrowLeft: here - step, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === " " || event.key === "Enter") document.activeElement.click();
    else if (to !== undefined) all[Math.max(0, Math.min(all.length - 1, to))].focus();
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const next = onNextLine(all, document.activeElement, event.key === "ArrowDown" ? 1 : -1);
      if (next !== null) next.focus();
      else if (event.key === "ArrowDown") below();
    } else return;
    event.preventDefault();
  });
}

function onNextLine(all, from, direction) {
  const box = (one) => one.getClientRects()[0];
  const start = box(from);
  const far = all.map((one) => [one, box(one)]).filter(([, at]) => direction * (at.top - start.top) > start.height / 2);
  if (!far.length) return null;
  const line = direction * Math.min(...far.map(([, at]) => direction * at.top));
  const near = far.filter(([, at]) => Math.abs(at.top - line) < start.height / 2);
  const middle = start.left + start.width / 2;
  return near.reduce((best, one) => (Math.abs(one[1].left + one[1].width / 2 - middle) < Math.abs(best[1].left + best[1].width / 2 - middle) ? one : best))[0];
}

