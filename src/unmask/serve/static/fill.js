// The view in which masks are filled.

import { fill, latest } from "./api.js";
import { debounce, el, percent, replace } from "./dom.js";
import { TOP, createList, fold, scaleOf } from "./lists.js";
import { tooMany, words } from "./sheet.js";
import { fillIn, partsOf, question, toggle } from "./words.js";

const WAIT = 250; // milliseconds after the last key

/** Return the view; `desk` gives lanes() (the names of the models that are asked), offline(retry) and the like. */
export function createFill(store, desk) {
  const lanes = [createLane(), createLane()];
  const panels = [];
  const only = el("input", { id: "only", type: "text", placeholder: "any word", spellcheck: "false", autocomplete: "off", autocapitalize: "off", "aria-keyshortcuts": "f" });
  const scaleNote = el("span", { class: "quiet" });
  const bar = el("div", { class: "ask" }, el("label", {}, "Only these words ", only), scaleNote);
  const errors = el("div", { class: "errors", role: "alert" });
  const notes = el("p", { class: "quiet note" });
  const grid = el("div", { class: "panels" });
  const hint = el("div", { class: "hint" },
    el("p", {}, "Click a word to hide it, and see what the model would put there."),
    el("p", { class: "quiet" }, "With keys: arrows to a word, space to hide it, a number to put in a candidate. ", el("kbd", {}, "?"), " shows them all."),
  );
  const root = el("div", { class: "fill" }, bar, errors, el("div", { class: "stage" }, hint, grid), notes);
  const later = debounce(ask, WAIT);

  only.addEventListener("input", () => store.set({ only: only.value }, { why: "typed" }));
  only.addEventListener("keydown", (event) => {
    if (event.key === "Escape" || event.key === "Enter") {
      event.preventDefault();
      desk.toSheet();
    }
  });

  const targets = (state) => [...new Set(state.only.split(/[,;\n]/).map((word) => word.trim()).filter(Boolean))];

  /** Return what a lane has to be asked, as one string; an answer to anything else is stale. */
  function keyOf(state, model, parts) {
    return JSON.stringify([model, question(parts), targets(state)]);
  }

  function bodyOf(state, model) {
    const wanted = targets(state);
    return { model, text: question(partsOf(state)), top_k: TOP, ...(wanted.length ? { targets: wanted } : {}) };
  }

  async function ask() {
    const state = store.get();
    const parts = partsOf(state);
    const masks = parts.filter((part) => part.mask !== null);
    const names = desk.lanes();
    await Promise.all(lanes.map(async (lane, number) => {
      const model = names[number];
      if (model === undefined || !masks.length) return lane.forget();
      const key = keyOf(state, model, parts);
      if (lane.key === key && lane.error === null) return undefined;
      desk.busy(1);
      const found = await lane.run((signal) => fill(bodyOf(state, model), signal)).finally(() => desk.busy(-1));
      if (found === null) return undefined; // something newer is on its way
      if (found.error) return fail(lane, found.error);
      desk.online();
      if (found.value.masks.length !== masks.length) {
        lane.error = `The server sees ${found.value.masks.length} masks where this page sees ${masks.length}; leave out what looks like a mask.`;
        return draw();
      }
      Object.assign(lane, { key, error: null, masks: found.value.masks.map((mask) => mask.candidates), truncated: found.value.truncated, own: null });
      draw();
      if (number === 0) tell(masks, lane);
      return askOwn(lane, key, state, model, masks);
    }));
    draw();
  }

  /** Ask what the words that are hidden have themselves, where they are not among the candidates. */
  async function askOwn(lane, key, state, model, masks) {
    const missing = masks.filter((part, number) => part.kind === "word" && rankOf(lane, number, part.text) < 0);
    if (targets(state).length || !missing.length) return;
    const wanted = [...new Set(missing.map((part) => part.text))];
    const found = await lane.runOwn((signal) => fill({ ...bodyOf(state, model), targets: wanted }, signal));
    if (found === null || found.error || lane.key !== key) return; // the row stays empty: the lists are what was asked for
    lane.own = found.value.masks.map((mask) => new Map(mask.candidates.map((candidate, place) => [wanted[place], candidate])));
    draw();
  }

  function fail(lane, error) {
    if (error.kind === "offline" || error.kind === "key" || error.kind === "busy") return desk.trouble(error, () => later(0));
    desk.online();
    Object.assign(lane, { key: null, masks: null, own: null, error: error.message });
    return draw();
  }

  function changed(state, before, why) {
    const typed = why === "typed";
    lanes.forEach((lane) => {
      if (lane.error !== null && (state.text !== before.text || String(state.hidden) !== String(before.hidden))) lane.error = null;
    });
    draw();
    later(typed ? WAIT : 0);
  }

  function draw() {
    const state = store.get();
    if (state.view !== "fill") return;
    const parts = partsOf(state);
    const masks = parts.filter((part) => part.mask !== null);
    const names = desk.lanes();
    if (document.activeElement !== only) only.value = state.only;
    const fresh = lanes.map((lane, number) => lane.masks !== null && lane.key === keyOf(state, names[number], parts));
    // an old answer is shown, faded, only where it has a list for each mask
    const seen = lanes.map((lane) => (lane.masks?.length === masks.length ? lane.masks : null));
    const scale = scaleOf(names.flatMap((_, number) => seen[number]?.flat() ?? []));
    scaleNote.textContent = masks.length && names.some((_, number) => seen[number]) ? `a full bar is ${percent(scale)}` : "";
    const failed = names.map((name, number) => [name, lanes[number].error]).filter(([, error]) => error !== null);
    replace(errors, ...failed.map(([name, error]) => el("p", { class: "error" }, names.length > 1 ? el("b", {}, `${name}: `) : null, error)));
    hint.hidden = masks.length > 0 || tooMany(state);
    while (panels.length < masks.length) panels.push(createPanel(panels.length));
    if (grid.children.length !== masks.length) grid.replaceChildren(...panels.slice(0, masks.length).map((panel) => panel.node));
    grid.classList.toggle("two", names.length > 1);
    masks.forEach((part, number) => panels[number].show({ state, part, count: masks.length, names, fresh, seen, scale, failed: failed.length > 0 }));
    const cut = names.filter((_, number) => lanes[number].truncated && fresh[number]);
    notes.textContent = tooMany(state)
      ? "This text has too many words to make each one a button: edit it, and write ___ for a word to guess."
      : cut.length ? `The text is longer than the model can see at once: it saw a part of it around each mask (${cut.join(", ")}).` : "";
  }

  function createPanel(number) {
    const badge = el("b", { class: "badge", "aria-hidden": "true" }, String(number + 1));
    const what = el("span", {});
    const common = el("span", { class: "quiet common" });
    const back = el("button", { class: "small", type: "button" }, "Show again");
    const sides = [0, 1].map((side) => {
      const list = createList(`${number}.${side}`, (candidate) => pick(number, candidate));
      const name = el("h3", {});
      const own = el("p", { class: "own" });
      return { list, name, own, node: el("div", { class: `lane lane${side}` }, name, list.node, own) };
    });
    const node = el("section", { class: "panel", onfocusin: () => activate(number), onclick: () => activate(number) },
      el("div", { class: "panel-head" }, badge, what, common, back), el("div", { class: "lanes" }, ...sides.map((side) => side.node)));
    let part = null;
    back.addEventListener("click", (event) => {
      event.stopPropagation();
      store.set(toggle(store.get(), part.start));
      desk.toSheet();
    });
    return {
      node,
      show({ state, part: shown, count, names, fresh, seen, scale, failed }) {
        part = shown;
        const own = part.kind === "word" ? part.text : null;
        const name = own === null ? "A blank" : `Instead of “${own}”`;
        what.textContent = name;
        badge.hidden = count < 2;
        back.hidden = own === null;
        node.classList.toggle("active", count > 1 && state.active === number);
        node.setAttribute("aria-label", `Mask ${number + 1}: ${name}`);
        const lists = names.map((_, side) => seen[side]?.[number] ?? null);
        const agreed = names.length > 1 && lists[0] && lists[1] ? inBoth(lists) : new Set();
        common.textContent = names.length > 1 && lists[0] && lists[1] ? `● in both: ${agreed.size} of ${Math.max(lists[0].length, lists[1].length)}` : "";
        sides.forEach((one, side) => {
          one.node.hidden = side >= names.length;
          if (side >= names.length) return;
          one.name.textContent = names[side];
          one.name.hidden = names.length < 2;
          one.list.show({ candidates: failed && !fresh[side] ? [] : lists[side], stale: !fresh[side], agreed, scale, shift: side === 1 });
          showOwn(one.own, own, fresh[side] ? lanes[side] : null, number, targets(state).length > 0);
        });
      },
    };
  }

  function showOwn(row, own, lane, number, isAsked) {
    const value = own === null || lane === null || isAsked ? null : ownOf(lane, number, own);
    row.classList.toggle("empty", value === null);
    replace(row, ...(value === null ? ["\u00a0"] : ["you wrote ", el("b", {}, own), ` ${value}`]));
  }

  function ownOf(lane, number, own) {
    const rank = rankOf(lane, number, own);
    if (rank >= 0) return `· no. ${rank + 1}, ${percent(lane.masks[number][rank].score)}`;
    const found = lane.own?.[number].get(own);
    if (found === undefined) return "· …";
    return found.score === null ? "· which the model has no word for" : `· ${percent(found.score)}`;
  }

  const rankOf = (lane, number, own) => lane.masks[number].findIndex((candidate) => fold(candidate) === own.toLowerCase());

  function inBoth(lists) {
    const [one, other] = lists.map((list) => new Set(list.map(fold)));
    return new Set([...one].filter((word) => other.has(word)));
  }

  function pick(number, candidate) {
    const state = store.get();
    const left = partsOf(state).filter((part) => part.mask !== null).length - 1;
    const inLists = grid.contains(document.activeElement);
    store.set({ ...fillIn(state, number, candidate), active: Math.max(0, Math.min(state.active, left - 1)) });
    // what had the focus may be gone: go on where the word was put
    if (inLists) desk.toSheet(store.get().picked.at(-1));
  }

  function activate(number) {
    if (store.get().active !== number) store.set({ active: number }, { why: "active" });
  }

  function tell(masks, lane) {
    const said = masks.slice(0, 3).map((part, number) => {
      const best = lane.masks[number].slice(0, 3).map((candidate) => `${candidate.token} ${candidate.score === null ? "no score" : percent(candidate.score)}`);
      return `${masks.length > 1 ? `Mask ${number + 1}: ` : ""}${best.join(", ") || "nothing"}`;
    });
    desk.tell(said.join(". "));
  }

  return {
    label: "Fill",
    root,
    changed,
    draw,
    request: () => ({ path: "api/fill", body: bodyOf(store.get(), desk.lanes()[0]) }),
    canRequest: () => partsOf(store.get()).some((part) => part.mask !== null) || "Hide a word first: there is no mask to ask about.",
    read(node, state) {
      node.classList.remove("heat");
      node.setAttribute("aria-label", "Words");
      replace(node, ...words(state, {
        current: state.active,
        press(part) {
          const now = store.get();
          if (part.kind === "blank") return activate(part.mask);
          const next = toggle(now, part.start);
          const number = partsOf({ ...now, ...next }).find((one) => one.start === part.start).mask;
          const left = partsOf({ ...now, ...next }).filter((one) => one.mask !== null).length;
          return store.set({ ...next, active: number ?? Math.max(0, Math.min(now.active, left - 1)) });
        },
      }));
    },
    below: () => (grid.children[store.get().active] ?? grid.firstElementChild)?.querySelector(".row:not(.none)")?.focus(),
    /** Do what a key asks for; return whether it asked for anything. */
    key(event) {
      const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
      if (digit) {
        const panel = grid.children[store.get().active];
        const side = event.shiftKey && desk.lanes().length > 1 ? 1 : 0;
        panel?.querySelectorAll(`.lane${side} .row`)[Number(digit) - 1]?.click();
      } else if (event.key === "n") {
        const count = grid.children.length;
        if (count) {
          store.set({ active: (store.get().active + 1) % count }, { why: "active" });
          desk.toSheet(partsOf(store.get()).find((part) => part.mask === store.get().active)?.start);
        }
      } else if (event.key === "f") only.focus();
      else return false;
      return true;
    },
  };

  function createLane() {
    const run = latest();
    const runOwn = latest();
    const lane = { key: null, masks: null, own: null, truncated: false, error: null, run, runOwn };
    lane.forget = () => {
      run.stop();
      runOwn.stop();
      Object.assign(lane, { key: null, masks: null, own: null, truncated: false, error: null });
    };
    return lane;
  }
}

/** Keep the arrows inside the lists: up and down from row to row, left and right to the other model's. */
export function roveRows(root, desk) {
  root.addEventListener("keydown", (event) => {
    const row = event.target.closest?.(".row");
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    const list = [...row.closest(".list").querySelectorAll(".row:not(.none)")];
    const place = list.indexOf(row);
    const lanes = [...root.querySelectorAll(".lane:not([hidden]) .list")];
    const other = lanes[lanes.indexOf(row.closest(".list")) + { ArrowLeft: -1, ArrowRight: 1 }[event.key]];
    if (event.key === "ArrowDown") list[Math.min(place + 1, list.length - 1)].focus();
    else if (event.key === "ArrowUp" && place > 0) list[place - 1].focus();
    else if (event.key === "ArrowUp" || event.key === "Escape") desk.toSheet();
    else if (other) other.querySelectorAll(".row:not(.none)")[Math.min(place, other.children.length - 1)]?.focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}
