// The view of surprisal: the text, the stronger coloured, the less the model expected what stands there.

import { score } from "./api.js";
import { el, keepOrReplace, percent, replace } from "./dom.js";
import { createLanes } from "./lanes.js";
import { ready, rove } from "./sheet.js";
import { codePoints, partsOf, wordAt } from "./words.js";

const WAIT = 500;
const HOTTEST = 12; // nats that the strongest colour stands for: the same in reports, so that they compare
const STRONGEST = 75; // per cent of the colour

export function createSurprisal(store, desk) {
  const lanes = createLanes(store, desk, {
    view: "surprisal",
    wait: WAIT,
    bodyOf: (state, model) => (state.text.trim() ? { model, text: state.text } : null),
    ask: score,
    take: (answer, state) => ({ value: { ...answer, spans: spansOf(state.text, answer.tokens), num: answer.tokens.filter(isScored).length }, error: null }),
    took: (lane, number) => number === 0 && desk.tell(`Pseudo-perplexity ${figure(lane.value.pseudo_perplexity)}`),
  });
  const other = createSecond(); // the second model's colours; the first's are on the sheet
  const columns = [0, 1].map((side) => createColumn(side));
  const root = el("div", { class: "surprisal" }, el("p", { class: "legend quiet" }, "0 nats ", el("i", { "aria-hidden": "true" }), ` ${HOTTEST} nats or more: the stronger the colour, the less the model expected the token`),
    lanes.errors, other.node, el("div", { class: "columns" }, ...columns.map((column) => column.node)));

  function changed(state, before, why) {
    draw();
    lanes.later(why === "typed" ? WAIT : 0);
  }

  function draw() {
    const state = store.get();
    if (state.view !== "surprisal") return;
    lanes.showErrors(state);
    columns.forEach((column, side) => column.show(state, side, desk.lanes()));
    other.show(state, desk.lanes());
  }

  function createSecond() {
    const name = el("h3", {});
    const heat = el("div", { class: "heat read second", role: "group", dir: "auto" });
    const node = el("div", {}, name, heat);
    rove(heat, () => columns[1].node.querySelector("button.row")?.focus());
    return {
      node,
      show(state, names) {
        node.hidden = names.length < 2;
        if (node.hidden) return;
        name.textContent = names[1];
        heat.setAttribute("aria-label", `Surprisal by ${names[1]}`);
        show(heat, state, lanes.fresh(state, 1), 1);
      },
    };
  }

  function createColumn(side) {
    const name = el("h3", {});
    const figures = el("dl", { class: "figures" });
    const top = el("ol", { class: "worst" });
    const node = el("div", { class: "column" }, name, figures, el("h4", {}, "Least expected"), top);
    return {
      node,
      show(state, number, names) {
        node.hidden = number >= names.length;
        if (node.hidden) return;
        const answer = lanes.fresh(state, number);
        name.textContent = names[number];
        name.hidden = names.length < 2;
        const scored = answer ? answer.spans.filter((span) => span.nats !== null) : [];
        const mean = scored.length ? answer.spans.reduce((sum, span) => sum + (span.nats ?? 0), 0) / answer.num : null;
        node.setAttribute("aria-busy", String(lanes.isWaiting(state, number)));
        replace(figures,
          cell("pseudo-perplexity", answer ? figure(answer.pseudo_perplexity) : "–", "each token hidden in turn"),
          cell("nats a token", mean === null ? "–" : mean.toFixed(2), "the mean surprisal"),
          cell("tokens", answer ? answer.num.toLocaleString("en") : "–", answer?.truncated ? "seen in windows: the text is long" : "scored"));
        const worst = [...scored].sort((a, b) => b.nats - a.nats).slice(0, 5);
        replace(top, ...Array.from({ length: 5 }, (_, place) => worstRow(state, worst[place], `worst${side}.${place}`)));
      },
    };
  }

  function worstRow(state, span, key) {
    if (span === undefined) return el("li", {}, el("span", { class: "row none" }, "\u00a0"));
    const bar = el("i");
    bar.style.setProperty("--share", String(Math.min(1, span.nats / HOTTEST)));
    return el("li", {}, el("button", { class: "row", type: "button", "data-key": key, "aria-label": `${span.text}, ${span.nats.toFixed(1)} nats: what would stand here instead?`, onclick: () => instead(store, desk, span) },
      el("span", { class: "word-of" }, ...inWord(state.text, span)), el("span", { class: "track heat-track", "aria-hidden": "true" }, bar), el("span", { class: "score" }, `${span.nats.toFixed(1)} nats`)));
  }

  return {
    label: "Surprisal",
    root,
    changed,
    draw,
    request: () => ({ path: "api/score", body: { model: desk.lanes()[0], text: store.get().text } }),
    canRequest: () => store.get().text.trim() !== "" || "There is no text yet.",
    read(node, state) {
      node.classList.add("heat");
      node.setAttribute("aria-label", "Tokens, coloured by their surprisal");
      const answer = lanes.fresh(state, 0);
      node.setAttribute("aria-busy", String(lanes.isWaiting(state, 0)));
      show(node, state, answer, 0);
    },
    below: () => columns[0].node.querySelector("button.row")?.focus(),
    key: () => false,
  };

  function show(node, state, answer, number) {
    // an answer belongs to one text and one model
    keepOrReplace(node, answer === null ? `text ${state.text}` : `heat ${desk.lanes()[number]} ${state.text}`, () => coloured(state, answer, number));
    ready(node);
  }

  function coloured(state, answer, number) {
    if (answer === null) return [state.text];
    const nodes = [];
    let end = 0;
    for (const span of answer.spans) {
      if (span.start > end) nodes.push(state.text.slice(end, span.start));
      end = span.end;
      if (span.nats === null) {
        nodes.push(span.text);
        continue;
      }
      const said = `${span.nats.toFixed(2)} nats, probability ${percent(Math.exp(-span.nats))}`;
      const token = el("span", { class: "token", role: "button", tabindex: "-1", "data-key": `t${number}.${span.start}`, "aria-label": `${span.text}: ${said}`, onclick: () => instead(store, desk, span) }, span.text);
      token.style.setProperty("--heat-share", `${(Math.min(span.nats / HOTTEST, 1) * STRONGEST).toFixed(0)}%`);
      for (const name of ["pointerenter", "focus"]) token.addEventListener(name, () => desk.tip(token, [span.text, said, span.count > 1 ? `${span.count} tokens together` : null, isMany(span) ? null : "click or Enter: hide it, and see what else could stand here"]));
      for (const name of ["pointerleave", "blur"]) token.addEventListener(name, () => desk.tip(null));
      nodes.push(token);
    }
    nodes.push(state.text.slice(end));
    return nodes;
  }

  function isMany(span) {
    return wordAt(store.get().text, span.start) === undefined;
  }
}

/** Return a token within the word that it is a piece of. */
function inWord(text, span) {
  const word = wordAt(text, span.start) ?? span;
  return [el("span", { class: "rest" }, text.slice(word.start, span.start)), el("b", {}, span.text), el("span", { class: "rest" }, text.slice(span.end, Math.max(word.end, span.end)))];
}

/** Hide the word that a token belongs to, and go to the view that fills it. */
function instead(store, desk, span) {
  const state = store.get();
  const word = wordAt(state.text, span.start);
  if (word === undefined) return;
  const next = { ...state, hidden: [word.start], picked: state.picked.filter((place) => place !== word.start) };
  const number = partsOf(next).find((part) => part.start === word.start)?.mask ?? 0;
  desk.tip(null);
  store.set({ hidden: next.hidden, picked: next.picked, active: number, view: "fill" }, { why: "view" });
  desk.toSheet(word.start);
}

const isScored = (token) => !token.special && token.surprisal_nats !== null;

/** Return the tokens of an answer with places of this language's strings; tokens that share a character are one span. */
function spansOf(text, tokens) {
  const at = codePoints(text);
  const spans = [];
  for (const token of tokens) {
    const [start, end] = [at[token.start] ?? text.length, at[token.end] ?? text.length];
    const nats = isScored(token) ? token.surprisal_nats : null;
    const last = spans[spans.length - 1];
    if (end === start && token.special) continue; // [CLS] and its like stand nowhere in the text
    if (last && start < last.end) {
      last.end = Math.max(last.end, end);
      last.text = text.slice(last.start, last.end);
      last.nats = last.nats === null && nats === null ? null : (last.nats ?? 0) + (nats ?? 0);
      last.count += 1;
    } else spans.push({ start, end, text: text.slice(start, end), nats, count: 1 });
  }
  return spans;
}

function cell(name, value, note) {
  return el("div", {}, el("dt", {}, name), el("dd", {}, value, el("small", {}, note)));
}

function figure(value) {
  if (value === null || value === undefined) return "–";
  return value >= 1e6 ? value.toExponential(1) : value >= 100 ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(3)).toString();
}
