// The view in which masks are filled.

import { fill, latest } from "./api.js";
import { el, keepOrReplace, percent, replace } from "./dom.js";
import { createLanes } from "./lanes.js";
import { TOP, createList, fold, scaleOf } from "./lists.js";
import { tooMany, words } from "./sheet.js";
import { createTogether } from "./together.js";
import { fillAll, fillIn, partsOf, question, toggle } from "./words.js";

const WAIT = 250; // milliseconds after the last key

/** Return the view; `desk` gives lanes() (the names of the models that are asked), offline(retry) and the like. */
export function createFill(store, desk) {
  const lanes = createLanes(store, desk, { view: "fill", wait: WAIT, bodyOf, ask: fill, take, took });
  const own = [createOwn(), createOwn()]; // what the words that are hidden have themselves
  const panels = [];
  const together = createTogether(pickAll, draw);
  const only = el("input", { id: "only", type: "text", placeholder: "any word", spellcheck: "false", autocomplete: "off", autocapitalize: "off", "aria-keyshortcuts": "f" });
  const scaleNote = el("span", { class: "quiet" });
  const bar = el("div", { class: "ask" }, el("label", {}, "Only these words ", only), scaleNote);
  const notes = el("p", { class: "quiet note" });
  const grid = el("div", { class: "panels" });
  const hint = el("div", { class: "hint" },
    el("p", {}, "Click a word to hide it, and see what the model would put there."),
    el("p", { class: "quiet" }, "With keys: arrows to a word, space to hide it, a number to put in a candidate. ", el("kbd", {}, "?"), " shows them all."),
  );
  const root = el("div", { class: "fill" }, bar, lanes.errors, el("div", { class: "stage" }, hint, grid, together.node), notes);

  only.addEventListener("input", () => store.set({ only: only.value }, { why: "typed" }));
  only.addEventListener("keydown", (event) => {
    if (event.key === "Escape" || event.key === "Enter") {
      event.preventDefault();
      desk.toSheet();
    }
  });

  const targets = (state) => [...new Set(state.only.split(/[,;\n]/).map((word) => word.trim()).filter(Boolean))];

  function bodyOf(state, model) {
    const parts = partsOf(state);
    if (!parts.some((part) => part.mask !== null)) return null;
    const wanted = targets(state);
    return { model, text: question(parts), top_k: TOP, ...(wanted.length ? { targets: wanted } : {}) };
  }

  function take(answer, state) {
    const count = masksOf(state).length;
    const found = answer.masks.length;
    const value = { masks: answer.masks.map((mask) => mask.candidates), truncated: answer.truncated };
    if (found === count) return { value, error: null };
    return { value: null, error: { message: `The server sees ${found} masks where this page sees ${count}; leave out what looks like a mask.` } };
  }

  function took(lane, number, state) {
    if (number === 0) tell(masksOf(state), lane.value);
    together.ask(number, lane.key);
    askOwn(lane, number, state);
  }

  /** Ask what the words that are hidden have themselves, where they are not among the candidates. */
  async function askOwn(lane, number, state) {
    const missing = masksOf(state).filter((part, place) => part.kind === "word" && rankOf(lane.value, place, part.text) < 0);
    if (targets(state).length || !missing.length) return;
    const wanted = [...new Set(missing.map((part) => part.text))];
    const found = await own[number].run((signal) => fill({ ...JSON.parse(lane.key), targets: wanted }, signal));
    if (found === null || found.error) return; // the row stays empty: the lists are what was asked for
    own[number].of = lane.value;
    own[number].masks = found.value.masks.map((mask) => new Map(mask.candidates.map((candidate, place) => [wanted[place], candidate])));
    draw();
  }

  function changed(state, before, why) {
    draw();
    lanes.later(why === "typed" ? WAIT : 0);
  }

  function draw() {
    const state = store.get();
    if (state.view !== "fill") return;
    const masks = masksOf(state);
    const names = desk.lanes();
    if (document.activeElement !== only) only.value = state.only;
    const fresh = names.map((_, number) => lanes.fresh(state, number));
    const failed = names.map((_, number) => lanes.hasFailed(state, number));
    // an old answer is shown, faded, only where it has a list for each mask
    const seen = names.map((_, number) => fresh[number] ?? (lanes.last(number)?.masks.length === masks.length ? lanes.last(number) : null));
    const scale = scaleOf(seen.flatMap((answer) => answer?.masks.flat() ?? []));
    scaleNote.textContent = masks.length && seen.some((answer) => answer !== null) ? `a full bar is ${scale * 100}%` : "";
    lanes.showErrors(state);
    hint.hidden = masks.length > 0 || tooMany(state);
    while (panels.length < masks.length) panels.push(createPanel(panels.length));
    if (grid.children.length !== masks.length) grid.replaceChildren(...panels.slice(0, masks.length).map((panel) => panel.node));
    grid.classList.toggle("two", names.length > 1);
    masks.forEach((part, number) => panels[number].show({ state, part, count: masks.length, names, fresh, failed, seen, scale }));
    const keys = names.map((name) => JSON.stringify(bodyOf(state, name)));
    together.show({ keys, names, count: masks.length, wanted: !targets(state).length && !tooMany(state) && !failed[0] });
    const cut = names.filter((_, number) => fresh[number]?.truncated);
    notes.textContent = tooMany(state)
      ? "This text has too many words to make each one a button: edit it, and write ___ for a word to guess."
      : cut.length ? `The text is longer than the model can see at once: it saw a part of it around each mask (${cut.join(", ")}).` : "";
  }

  function createPanel(number) {
    const badge = el("b", { class: "badge", "aria-hidden": "true" }, String(number + 1));
    const what = el("span", {});
    const common = el("span", { class: "quiet common" });
    const back = el("button", { class: "small", type: "button" }, "Show again");
    const sides = [];
    const beside = el("div", { class: "lanes" });
    const node = el("section", { class: "panel", onfocusin: () => activate(number), onclick: () => activate(number) },
      el("div", { class: "panel-head" }, badge, what, common, back), beside);

    function addSide() {
      const side = sides.length;
      const list = createList(`${number}.${side}`, (candidate) => pick(number, candidate));
      const name = el("h3", {});
      const wrote = el("p", { class: "own" });
      sides.push({ list, name, wrote, node: el("div", { class: `lane lane${side}` }, name, list.node, wrote) });
      beside.append(sides[side].node);
    }

    let part = null;
    back.addEventListener("click", (event) => {
      event.stopPropagation();
      store.set(toggle(store.get(), part.start));
      desk.toSheet();
    });
    return {
      node,
      show({ state, part: shown, count, names, fresh, failed, seen, scale }) {
        part = shown;
        const wrote = part.kind === "word" ? part.text : null;
        const name = wrote === null ? "A blank" : `Instead of “${wrote}”`;
        what.textContent = name;
        badge.hidden = count < 2;
        back.hidden = wrote === null;
        node.classList.toggle("active", count > 1 && state.active === number);
        node.setAttribute("aria-label", `Mask ${number + 1}: ${name}`);
        const lists = names.map((_, side) => seen[side]?.masks[number] ?? null);
        const agreed = names.length > 1 && lists[0] && lists[1] ? inBoth(lists) : new Set();
        common.textContent = names.length > 1 && lists[0] && lists[1] ? `● in both: ${agreed.size} of ${Math.max(lists[0].length, lists[1].length)}` : "";
        while (sides.length < names.length || !sides.length) addSide();
        sides.forEach((one, side) => {
          one.node.hidden = side > 0 && side >= names.length;
          if (one.node.hidden) return;
          one.name.textContent = names[side] ?? "";
          one.name.hidden = names.length < 2;
          one.list.show({ candidates: failed[side] ? [] : (lists[side] ?? null), stale: !fresh[side], agreed, scale, shift: side === 1 });
          showOwn(one.wrote, wrote, (targets(state).length ? null : fresh[side]) ?? null, own[side], number);
        });
      },
    };
  }

  function showOwn(row, word, answer, asked, number) {
    const value = word === null || answer === null ? null : ownOf(answer, asked, number, word);
    row.classList.toggle("empty", value === null);
    replace(row, ...(value === null ? ["\u00a0"] : ["you wrote ", el("b", {}, word), ` · ${value}`]));
  }

  function ownOf(answer, asked, number, word) {
    const rank = rankOf(answer, number, word);
    if (rank >= 0) return `no. ${rank + 1}, ${percent(answer.masks[number][rank].score)}`;
    const found = asked.of === answer ? asked.masks[number].get(word) : undefined;
    if (found === undefined) return "…";
    return found.score === null ? "which has no score here" : percent(found.score);
  }

  const rankOf = (answer, number, word) => answer.masks[number].findIndex((candidate) => fold(candidate) === word.toLowerCase());

  function inBoth(lists) {
    const [one, other] = lists.map((list) => new Set(list.map(fold)));
    return new Set([...one].filter((word) => other.has(word)));
  }

  function pick(number, candidate) {
    const state = store.get();
    const left = masksOf(state).length - 1;
    const inLists = grid.contains(document.activeElement);
    store.set({ ...fillIn(state, number, candidate), active: Math.max(0, Math.min(state.active, left - 1)) });
    // what had the focus may be gone: go on where the word was put
    if (inLists) desk.toSheet(store.get().picked.at(-1));
  }

  function pickAll(filling) {
    const state = store.get();
    if (masksOf(state).length !== filling.tokens.length) return; // it is of another sentence
    store.set({ ...fillAll(state, filling), active: 0 });
    desk.toSheet(store.get().picked.at(-1));
  }

  function activate(number) {
    if (store.get().active !== number) store.set({ active: number }, { why: "active" });
  }

  function tell(masks, answer) {
    const said = masks.slice(0, 3).map((part, number) => {
      const best = answer.masks[number].slice(0, 3).map((candidate) => `${candidate.token} ${candidate.score === null ? "no score" : percent(candidate.score)}`);
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
    canRequest: () => masksOf(store.get()).length > 0 || "Hide a word first: there is no mask to ask about.",
    read(node, state) {
      node.classList.remove("heat");
      node.setAttribute("aria-label", "Words");
      keepOrReplace(node, `words ${JSON.stringify([state.text, state.hidden, state.picked, state.active])}`, () => words(state, {
        current: state.active,
        press(part) {
          const now = store.get();
          if (part.kind === "blank") return activate(part.mask);
          const next = toggle(now, part.start);
          const number = partsOf({ ...now, ...next }).find((one) => one.start === part.start).mask;
          const left = masksOf({ ...now, ...next }).length;
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
}

function createOwn() {
  return { of: null, masks: null, run: latest() };
}

const masksOf = (sentence) => partsOf(sentence).filter((part) => part.mask !== null);

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
