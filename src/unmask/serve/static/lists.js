// The candidates at a mask: rows that stay in place while what they show changes.

import { el, percent } from "./dom.js";

export const TOP = 9; // as many as there are number keys

/** Return a list of candidates: its node, and show({rows, stale, agreed, scale, shift}). */
export function createList(key, pick) {
  const list = el("ol", { class: "list" });
  const rows = [];

  function ensure(count) {
    while (rows.length < count) rows.push(createRow(`${key}.${rows.length}`, rows.length, (candidate) => pick(candidate)));
    list.replaceChildren(...rows.slice(0, count).map((row) => row.node));
  }

  ensure(TOP);
  return {
    node: list,
    show({ candidates, stale, agreed, scale, shift }) {
      const count = Math.max(TOP, candidates?.length ?? 0);
      if (list.children.length !== count) ensure(count);
      list.classList.toggle("stale", stale);
      list.setAttribute("aria-busy", String(stale));
      rows.forEach((row, place) => row.show(candidates?.[place], { stale, agreed, scale, shift, waiting: candidates === null }));
    },
  };
}

function createRow(key, place, pick) {
  let shown = null;
  const [before, token, after] = [el("span", { class: "rest" }), el("b"), el("span", { class: "rest" })];
  const both = el("span", { class: "both", "aria-hidden": "true" });
  const bar = el("i");
  const score = el("span", { class: "score" });
  const digit = el("kbd", { "aria-hidden": "true" }, place < TOP ? String(place + 1) : "");
  const word = el("span", { class: "word-of" }, before, token, after, both);
  const button = el(
    "button",
    { type: "button", class: "row none", "data-key": key, onclick: () => shown !== null && pick(shown) },
    digit, word, el("span", { class: "track", "aria-hidden": "true" }, bar), score,
  );
  return {
    node: el("li", {}, button),
    show(candidate, { stale, agreed, scale, shift, waiting }) {
      shown = stale ? null : (candidate ?? null);
      button.classList.toggle("none", candidate === undefined);
      button.classList.toggle("waiting", waiting);
      // a button that is only waiting keeps the focus; one that is empty is none
      button.setAttribute("aria-disabled", String(shown === null));
      button.tabIndex = candidate === undefined ? -1 : 0;
      if (candidate === undefined) {
        for (const part of [before, token, after, both, score]) part.textContent = "";
        button.removeAttribute("aria-label");
        bar.style.setProperty("--share", "0");
        return;
      }
      const isAgreed = agreed.has(fold(candidate));
      const [first, own, last] = pieces(candidate);
      before.textContent = first;
      token.textContent = own;
      after.textContent = last;
      both.textContent = isAgreed ? "●" : "";
      button.classList.toggle("agreed", isAgreed);
      const said = candidate.score === null ? "no score" : percent(candidate.score);
      score.textContent = candidate.score === null ? "–" : said;
      bar.style.setProperty("--share", String(Math.min(1, (candidate.score ?? 0) / scale)));
      button.title = candidate.score === null ? (candidate.error ?? "This word has no score here.") : `${candidate.word || candidate.token}: ${candidate.score.toPrecision(3)} (log-probability ${candidate.logprob.toFixed(2)})`;
      button.setAttribute("aria-label", `${own}, ${said}${isAgreed ? ", in both lists" : ""}`);
      if (place < TOP) button.setAttribute("aria-keyshortcuts", `${shift ? "Shift+" : ""}${place + 1}`);
    },
  };
}

/** Return how a candidate is compared with another model's. */
export const fold = (candidate) => (candidate.word || candidate.token).toLowerCase();

/** Return a candidate's word as what stood there, what is put in, and what stands after. */
function pieces({ token, word }) {
  if (!token.trim()) return ["", JSON.stringify(token).slice(1, -1).replaceAll(" ", "␣") || "∅", ""];
  if (word !== token && word.endsWith(token)) return [word.slice(0, -token.length), token, ""];
  if (word !== token && word.startsWith(token)) return ["", token, word.slice(token.length)];
  return ["", token, ""];
}

/** Return what a full bar stands for, the same in all lists that are seen together. */
export function scaleOf(lists) {
  const most = Math.max(0, ...lists.flat().map((candidate) => candidate.score ?? 0));
  return [0.01, 0.05, 0.1, 0.25, 0.5, 0.75].find((step) => most <= step) ?? 1;
}
