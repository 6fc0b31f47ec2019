// Views of models with other tasks, asked in the shapes of the Hugging Face inference API: what they find is marked in the text, and listed.

import { task } from "./api.js";
import { el, keepOrReplace, percent, replace } from "./dom.js";
import { createLanes } from "./lanes.js";
import { codePoints } from "./words.js";

const WAIT = 350;
const COLOURS = 6;

// for each task: what is asked, what is marked in the text ({start, end, label, colour}), and what is listed
const KINDS = {
  "text-classification": {
    view: "classify",
    label: "Classify",
    bodyOf: (state) => ({ inputs: state.text }),
    // a list for one text, or a list of such lists: servers differ
    take: (answer) => ({ marks: [], rows: answer.flat().map(({ label, score }) => ({ name: label, score })) }),
    none: "No class.",
  },
  "token-classification": {
    view: "entities",
    label: "Entities",
    bodyOf: (state) => ({ inputs: state.text, parameters: { aggregation_strategy: "simple" } }),
    take(answer, text) {
      const groups = [...new Set(answer.map((one) => one.entity_group))].sort();
      const colour = (one) => groups.indexOf(one.entity_group) % COLOURS;
      const marks = answer.map((one) => ({ start: one.start, end: one.end, label: one.entity_group, colour: colour(one) }));
      const at = codePoints(text);
      return { marks, rows: answer.map((one) => ({ name: text.slice(at[one.start], at[one.end]) || one.word, kind: one.entity_group, colour: colour(one), score: one.score })) };
    },
    none: "No entity in this text.",
  },
  "question-answering": {
    view: "answer",
    label: "Answer",
    asks: true,
    bodyOf: (state) => (state.question.trim() ? { inputs: { question: state.question.trim(), context: state.text }, parameters: { top_k: 5 } } : null),
    take(answer) {
      const all = [answer].flat(); // the first is the answer; it is empty where the text holds none
      const best = all.slice(0, 1).filter((one) => one.answer);
      return { marks: best.map((one) => ({ start: one.start, end: one.end, label: "answer", colour: 0 })), rows: all.map((one) => ({ name: one.answer || "no answer", score: one.score })) };
    },
    none: "No answer in this text.",
  },
};

export const VIEW_OF = Object.fromEntries(Object.entries(KINDS).map(([name, kind]) => [name, kind.view]));

/** Return the view of a task. */
export function createTask(store, desk, name) {
  const kind = KINDS[name];
  const body = (state) => (state.text.trim() ? kind.bodyOf(state) : null);
  const lanes = createLanes(store, desk, {
    view: kind.view,
    wait: WAIT,
    bodyOf(state, model) {
      const made = body(state);
      return made === null ? null : { model, ...made };
    },
    ask: ({ model, ...rest }, signal) => task(model, rest, signal),
    take: (answer, state) => ({ value: kind.take(answer, state.text), error: null }),
    took: (lane, number) => number === 0 && desk.tell(lane.value.rows.slice(0, 3).map((row) => `${row.name} ${row.kind ?? ""} ${percent(row.score)}`).join(", ") || kind.none),
  });
  const question = el("input", { type: "text", class: "question", placeholder: "What do you want to know?", "aria-keyshortcuts": "f" });
  question.addEventListener("input", () => store.set({ question: question.value }, { why: "typed" }));
  const columns = [0, 1].map(createColumn);
  const root = el("div", { class: "task" }, kind.asks ? el("div", { class: "ask" }, el("label", {}, "Question ", question)) : null, lanes.errors,
    el("div", { class: "columns" }, ...columns.map((column) => column.node)));

  function createColumn(side) {
    const title = el("h3", {});
    const text = el("div", { class: "read second", dir: "auto" });
    const list = el("ol", { class: "worst" });
    const node = el("div", { class: `column lane${side}` }, title, text, list);
    return {
      node,
      show(state, names) {
        node.hidden = side >= names.length;
        if (node.hidden) return;
        const answer = lanes.fresh(state, side);
        title.textContent = names[side];
        title.hidden = names.length < 2;
        text.hidden = side === 0 || answer === null || !answer.marks.length; // the first model's is on the sheet
        if (side > 0) marked(text, state, answer, names[side]);
        node.setAttribute("aria-busy", String(lanes.isWaiting(state, side)));
        list.hidden = body(state) === null || lanes.hasFailed(state, side);
        if (answer !== null) replace(list, ...(answer.rows.length ? answer.rows.map(row) : [el("li", { class: "quiet none-found" }, kind.none)]));
        list.classList.toggle("stale", answer === null);
      },
    };
  }

  function row({ name: word, kind: group, colour, score }) {
    const bar = el("i");
    bar.style.setProperty("--share", String(score));
    return el("li", {}, el("div", { class: "row" }, el("span", { class: "word-of" }, el("b", {}, word), group ? el("span", { class: `group g${colour}` }, group) : null),
      el("span", { class: "track", "aria-hidden": "true" }, bar), el("span", { class: "score" }, percent(score))));
  }

  function marked(node, state, answer, model) {
    keepOrReplace(node, answer === null ? `text ${state.text}` : `${kind.view} ${model} ${state.question} ${state.text}`, () => {
      const at = codePoints(state.text);
      const nodes = [];
      let end = 0;
      for (const mark of [...(answer?.marks ?? [])].sort((a, b) => a.start - b.start)) {
        const [from, to] = [at[mark.start], at[mark.end]];
        if (from === undefined || to === undefined || from < end) continue; // one that overlaps stands in the list
        nodes.push(state.text.slice(end, from), el("mark", { class: `entity g${mark.colour}`, "data-label": mark.label }, state.text.slice(from, to)));
        end = to;
      }
      return [...nodes, state.text.slice(end)];
    });
  }

  const draw = () => {
    const state = store.get();
    if (state.view !== kind.view) return;
    if (document.activeElement !== question) question.value = state.question;
    lanes.showErrors(state);
    for (const column of columns) column.show(state, desk.lanes());
  };
  return {
    label: kind.label,
    root,
    draw,
    changed(state, before, why) {
      draw();
      lanes.later(why === "typed" ? WAIT : 0);
    },
    request: () => ({ path: `models/${encodeURIComponent(desk.lanes()[0])}`, body: body(store.get()) }),
    canRequest: () => body(store.get()) !== null || (kind.asks ? "Write a text and a question first." : "There is no text yet."),
    read(node, state) {
      node.classList.remove("heat");
      node.setAttribute("aria-label", "Text");
      marked(node, state, lanes.fresh(state, 0), desk.lanes()[0]);
    },
    below: () => {},
    key(event) {
      if (event.key !== "f" || !kind.asks) return false;
      question.focus();
      return true;
    },
  };
}
