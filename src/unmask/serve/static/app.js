// The page as a whole: which view, which models, the address, the keys, and what to do when the server is away.

import { ApiError, key, latest, models as askModels } from "./api.js";
import { $, debounce, el, replace, say } from "./dom.js";
import { createFill, roveRows } from "./fill.js";
import { createSheet, rove } from "./sheet.js";
import { curl, python } from "./snippets.js";
import { createStore, fromFragment, toFragment } from "./store.js";
import { createSurprisal } from "./surprisal.js";
import { VIEW_OF, createTask } from "./tasks.js";

// a star before a word hides it
const EXAMPLES = [
  "The band released its first *album in the spring of 1994.",
  "She was born in *London and studied at the university.",
  "The river flows through the town and into the *sea.",
  "The nurse said that *she would call the doctor in the morning.",
  "In 2008 the *team won the *championship for the second time.",
].map((marked) => {
  const pieces = marked.split("*");
  const hidden = pieces.slice(0, -1).map((_, number) => pieces.slice(0, number + 1).join("").length);
  return { text: pieces.join(""), hidden, picked: [], active: 0 };
});
const RETRY_SECONDS = 3;
const BUSY_TRIES = 3; // a request that finds the server busy this often waits for the reader

const store = createStore(fromFragment(location.hash) ?? EXAMPLES[0]);
let served = []; // the models, as the server describes them
let busy = 0;
let waiting = null; // what is to be done once the server is back
let retryTimer = 0;
let tries = 0;

const TASK_OF = { fill: "fill-mask", surprisal: "fill-mask", ...Object.fromEntries(Object.entries(VIEW_OF).map(([task, name]) => [name, task])) };
/** Return the names of the models that a view can ask. */
const modelsOf = (name) => served.filter((model) => model.task === TASK_OF[name]).map((model) => model.name);
const shownModels = () => modelsOf(store.get().view);

const desk = {
  /** Return the names of the models that are asked: one, or two that are compared. */
  lanes() {
    const { one, other, compare } = store.get();
    const names = shownModels();
    if (!names.includes(one)) return [];
    return compare && names.includes(other) ? [one, other] : [one];
  },
  busy(step) {
    busy += step;
    showStatus();
  },
  online() {
    tries = 0;
    calm();
    lookAgain();
  },
  trouble,
  tell: (text) => {
    $("told").textContent = text;
  },
  tip: showTip,
  redraw: () => {
    sheet.draw();
    view().draw();
  },
  /** Put the focus on the sheet: on the word that begins at a place, or where it was last. */
  toSheet(place) {
    sheet.done();
    const found = place === undefined ? null : $("read").querySelector(`[data-key="w${place}"]`);
    (found ?? sheet.first()).focus({ preventScroll: true });
  },
};

const views = { fill: createFill(store, desk), surprisal: createSurprisal(store, desk) };
for (const [task, name] of Object.entries(VIEW_OF)) views[name] = createTask(store, desk, task);
const view = () => views[store.get().view];
if (!(store.get().view in views)) store.set({ view: "fill" });
const sheet = createSheet(store, views);

// views and models

/** Return the views that there are models for; before the server has said which, those of masked language models. */
const openViews = () => Object.keys(views).filter((name) => (served.length ? modelsOf(name).length > 0 : TASK_OF[name] === "fill-mask"));

function showTabs() {
  const names = openViews();
  const current = store.get().view;
  replace($("tabs"), ...names.map((name) => el("button", {
    id: `tab-${name}`, type: "button", role: "tab", "aria-selected": String(name === current), "aria-controls": "results",
    tabindex: name === current ? "0" : "-1", "data-key": `tab-${name}`, onclick: () => go(name),
    onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.stopPropagation();
      const next = names[(names.indexOf(name) + step + names.length) % names.length];
      go(next);
      $(`tab-${next}`).focus();
    },
  }, views[name].label)));
  $("results").setAttribute("aria-labelledby", `tab-${current}`);
  if ($("results").firstElementChild !== view().root) $("results").replaceChildren(view().root);
}

function go(name) {
  const { one, other } = store.get();
  const names = modelsOf(name);
  // a view with other models than the one before it begins with the first of them
  const chosen = names.includes(one) ? {} : { one: names[0] ?? "" };
  if (!names.includes(other)) chosen.other = names.find((model) => model !== (chosen.one ?? one)) ?? "";
  store.set({ view: name, ...chosen }, { why: "view" });
}

function showModels() {
  const { one, other, compare } = store.get();
  const names = shownModels();
  const two = names.length > 1;
  const options = (select, chosen) => {
    replace(select, ...names.map((name) => el("option", { value: name }, name)));
    select.value = chosen;
  };
  options($("one"), one);
  options($("other"), other);
  $("one").disabled = !names.length;
  $("compare").hidden = !two;
  $("compare").setAttribute("aria-pressed", String(compare && two));
  $("with").hidden = !(compare && two);
  const model = served.find((item) => item.name === one);
  const about = model === undefined ? [] : [model.vocab_size ? `vocabulary ${model.vocab_size.toLocaleString("en")}` : null, model.max_length ? `up to ${model.max_length.toLocaleString("en")} tokens` : null, model.backend, model.precision];
  $("about").textContent = compare && two ? "" : about.filter(Boolean).join(" · ");
}

/** Take the models that the server has; what the address names and is not there is said. */
function takeModels(list) {
  served = list;
  const { one, other, compare, view: name } = store.get();
  const open = openViews();
  const current = open.includes(name) ? name : open[0];
  const names = current === undefined ? [] : modelsOf(current);
  const gone = [one, compare ? other : ""].filter((model) => model && !list.some((item) => item.name === model));
  if (current === undefined) trouble(new ApiError("refused", "This server has no model that this page can show. Start one with: unmask serve MODEL"), null);
  else if (gone.length) say(`${gone.join(" and ")}: not served here`);
  const first = names.includes(one) ? one : (names[0] ?? "");
  const second = names.includes(other) && other !== first ? other : (names.find((model) => model !== first) ?? "");
  store.set({ one: first, other: second, view: current ?? name }, { why: "view" });
  showStatus();
}

const refresh = latest();

async function connect() {
  const found = await refresh((signal) => askModels(signal));
  if (found === null) return;
  if (found.error) {
    trouble(found.error, null);
    return;
  }
  const again = waiting;
  calm();
  takeModels(found.value.models);
  again?.();
}

/** Read again what the models are like: of one that is loaded when it is first asked, the server knew little before. */
async function lookAgain() {
  const unknown = (model) => desk.lanes().includes(model.name) && model.loaded === false;
  if (!served.some(unknown)) return;
  const found = await refresh((signal) => askModels(signal));
  if (found === null || found.error) return; // whoever asks next will say so
  served = found.value.models;
  showModels();
}

// when something is wrong

function calm() {
  clearTimeout(retryTimer);
  waiting = null;
  $("trouble").hidden = true;
  showStatus();
}

function trouble(error, again) {
  waiting = again ?? waiting;
  clearTimeout(retryTimer);
  if (error.kind === "key") {
    $("key-said").textContent = error.message;
    if (!$("key-dialog").open) $("key-dialog").showModal();
  }
  const seconds = error.kind === "busy" ? error.retrySeconds : RETRY_SECONDS;
  const goesOn = error.kind === "offline" || (error.kind === "busy" && ++tries <= BUSY_TRIES);
  const button = error.kind === "key"
    ? el("button", { class: "pill", type: "button", onclick: () => $("key-dialog").showModal() }, "Give the key")
    : el("button", { class: "pill", type: "button", onclick: () => connect() }, "Try now");
  const rest = goesOn ? ` Trying again${error.kind === "busy" ? ` in ${seconds} s` : ""}; what you wrote stays here.` : "";
  replace($("trouble"), el("span", {}, el("b", {}, /[.!?]$/.test(error.message) ? error.message : `${error.message}.`), rest), button);
  $("trouble").hidden = false;
  if (goesOn) retryTimer = setTimeout(connect, seconds * 1000);
  showStatus(error.kind);
}

function showStatus(kind) {
  const wrong = !$("trouble").hidden;
  const is = wrong ? (kind ?? $("status").dataset.is) : busy > 0 ? "busy-now" : served.length ? "ready" : "waiting";
  $("status").dataset.is = is;
  const said = { ready: "ready", "busy-now": "thinking", waiting: "connecting", offline: "disconnected", busy: "server busy", key: "key wanted", failed: "server failed", refused: "no model" }[is];
  const label = $("status").lastElementChild;
  // a live region: said when the connection changes, not at every request
  if (label.textContent !== said) label.textContent = said;
}

// the tip of a token

function showTip(over, lines = []) {
  const tip = $("tip");
  document.querySelectorAll('[aria-describedby="tip"]').forEach((one) => one.removeAttribute("aria-describedby"));
  tip.hidden = over === null;
  if (over === null) return;
  over.setAttribute("aria-describedby", "tip");
  replace(tip, ...lines.filter(Boolean).map((line, number) => el(number ? "span" : "b", {}, line)));
  const at = over.getClientRects()[0];
  const left = Math.max(8, Math.min(at.left + at.width / 2 - tip.offsetWidth / 2, document.documentElement.clientWidth - tip.offsetWidth - 8));
  const above = at.top - tip.offsetHeight - 8;
  tip.style.setProperty("left", `${left}px`);
  tip.style.setProperty("top", `${above < 4 ? at.bottom + 8 : above}px`);
}

// copying

async function copy(text, said) {
  try {
    await navigator.clipboard.writeText(text);
    say(said);
  } catch {
    // no permission, or a page that did not come over https: let the reader copy it
    $("copy-text").value = text;
    $("copy-dialog").showModal();
    $("copy-text").select();
  }
}

function copyRequest(write, said) {
  const may = view().canRequest();
  if (may !== true || !desk.lanes().length) return say(may === true ? "There is no model to ask." : may);
  const { path, body } = view().request();
  return copy(write(path, body, key.get() !== ""), said);
}

// the address

const writeAddress = debounce(() => {
  const fragment = toFragment(store.get());
  // from here on the address would be wrong: rather none than an old one
  if (location.hash !== fragment) history.replaceState(null, "", fragment ?? location.pathname + location.search);
}, 300);

function copyLink() {
  const fragment = toFragment(store.get());
  if (fragment === null) return say("The text is too long for a link.");
  return copy(new URL(fragment, location.href).href, "Link copied. It holds your text.");
}

window.addEventListener("hashchange", () => {
  const given = fromFragment(location.hash);
  if (given === null) return;
  sheet.done();
  const { one, other } = store.get();
  store.set({ ...given, one: given.one || one, other: given.other || other, view: given.view in views ? given.view : "fill" }, { why: "view" });
  if (served.length) takeModels(served);
});

// light and dark

const isDark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

function showTheme() {
  $("theme").textContent = isDark() ? "☀" : "☾";
  $("theme").setAttribute("aria-label", isDark() ? "Light colours" : "Dark colours");
}

function turnTheme() {
  const chosen = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = chosen;
  keep("unmask.theme", chosen);
  showTheme();
}

function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // a browser that keeps nothing: it lasts as long as the page
  }
}

// keys

let letters = true;
try {
  letters = localStorage.getItem("unmask.letters") !== "no";
} catch {
  // as above
}

let number = EXAMPLES.findIndex((example) => example.text === store.get().text);

function nextExample() {
  sheet.done();
  number = (number + 1) % EXAMPLES.length;
  store.set({ ...EXAMPLES[number], picked: [] });
}

const undo = () => store.undo() || say("There is nothing to undo.");
const redo = () => store.redo() || say("There is nothing to redo.");
const turnCompare = () => {
  if (shownModels().length < 2) return say("Two models are compared where two are served: unmask serve MODEL MODEL");
  return store.set({ compare: !store.get().compare }, { why: "models" });
};
const LETTERS = {
  "?": () => $("help-dialog").showModal(),
  e: () => sheet.edit(),
  s: () => {
    const open = openViews();
    go(open[(open.indexOf(store.get().view) + 1) % open.length]);
  },
  c: turnCompare,
  x: nextExample,
  l: copyLink,
  d: turnTheme,
};

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
  const isWriting = event.target.matches?.("textarea, input, select");
  const pressed = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && !event.altKey && !isWriting && (pressed === "z" || pressed === "y")) {
    event.preventDefault();
    if (pressed === "y" || event.shiftKey) redo();
    else undo();
    return;
  }
  if (event.key === "Escape") showTip(null);
  if (isWriting || event.ctrlKey || event.metaKey || event.altKey || !letters) return;
  const act = LETTERS[event.key];
  if (act !== undefined) act();
  else if (!view().key(event)) return;
  event.preventDefault();
});

// everything together

store.listen((state, before, why) => {
  if (why === "view" || state.view !== before.view) showTabs();
  if (why === "view" || why === "models" || state.one !== before.one || state.other !== before.other || state.compare !== before.compare) showModels();
  showTip(null);
  sheet.draw();
  view().changed(state, before, why);
  writeAddress();
});

for (const [id, act] of Object.entries({
  undo, redo, example: nextExample, link: copyLink, theme: turnTheme, compare: turnCompare,
  curl: () => copyRequest(curl, "Copied as a curl command."),
  python: () => copyRequest(python, "Copied as a Python program."),
  help: () => $("help-dialog").showModal(),
})) $(id).addEventListener("click", act);

for (const id of ["one", "other"]) $(id).addEventListener("change", (event) => store.set({ [id]: event.target.value }, { why: "models" }));
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}

$("key-form").addEventListener("submit", () => {
  key.set($("key").value.trim());
  $("key").value = "";
  connect();
});
$("letters").checked = letters;
$("letters").addEventListener("change", () => {
  letters = $("letters").checked;
  keep("unmask.letters", letters ? "yes" : "no");
});
window.addEventListener("online", connect);
window.addEventListener("scroll", () => showTip(null), { passive: true });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);

rove($("read"), () => view().below());
roveRows($("results"), desk);
showTheme();
showTabs();
sheet.draw();
view().draw();
connect();
