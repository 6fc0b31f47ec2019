// A sentence and what is hidden in it: functions of text alone, which know no page.
// A sentence is {text, hidden, picked}: `hidden` and `picked` are the places at which hidden and filled-in words begin.

export const MASK = "[MASK]";
// what the server takes for a mask in any text; underscores between two letters are part of a name
const MARKER = /\[MASK\]|<mask>|(?<!_)(?:(?<![\p{L}\p{N}])_{3,}|_{3,}(?![\p{L}\p{N}]))(?!_)/gu;
const WORD = /[\p{L}\p{N}\p{M}]+(?:['’][\p{L}\p{N}\p{M}]+)*/gu;
const segmenter = globalThis.Intl?.Segmenter ? new Intl.Segmenter(undefined, { granularity: "word" }) : null;

let last = { text: null, parts: [] };

/** Return a text cut into parts {kind, start, end, text}: words, blanks (masks that were typed) and what stands between. */
export function cut(text) {
  if (last.text !== text) last = { text, parts: cutAnew(text) };
  return last.parts;
}

function cutAnew(text) {
  const parts = [];
  const add = (kind, start, end) => {
    if (end > start) parts.push({ kind, start, end, text: text.slice(start, end) });
  };
  let end = 0;
  for (const marker of text.matchAll(MARKER)) {
    cutPlain(text, end, marker.index, add);
    end = marker.index + marker[0].length;
    add("blank", marker.index, end);
  }
  cutPlain(text, end, text.length, add);
  return parts;
}

function cutPlain(text, from, to, add) {
  const plain = text.slice(from, to);
  let end = from;
  for (const [start, stop] of wordsOf(plain)) {
    add("gap", end, from + start);
    end = from + stop;
    add("word", from + start, end);
  }
  add("gap", end, to);
}

function* wordsOf(plain) {
  if (segmenter === null) {
    for (const found of plain.matchAll(WORD)) yield [found.index, found.index + found[0].length];
    return;
  }
  for (const one of segmenter.segment(plain)) if (one.isWordLike) yield [one.index, one.index + one.segment.length];
}

/** Return the parts of a sentence; those that the model is to guess have `mask`, their number from 0. */
export function partsOf(sentence) {
  const hidden = new Set(sentence.hidden);
  const picked = new Set(sentence.picked);
  let count = 0;
  return cut(sentence.text).map((part) => {
    const isMask = part.kind === "blank" || (part.kind === "word" && hidden.has(part.start));
    return { ...part, mask: isMask ? count++ : null, picked: part.kind === "word" && picked.has(part.start) };
  });
}

/** Return what the model is asked: the text with a mask for every part that is to be guessed. */
export function question(parts) {
  return parts.map((part) => (part.mask === null ? part.text : MASK)).join("");
}

/** Return a sentence with a word hidden, or shown again. */
export function toggle(sentence, start) {
  const hidden = sentence.hidden.includes(start) ? sentence.hidden.filter((place) => place !== start) : [...sentence.hidden, start];
  return { ...sentence, hidden: hidden.sort((a, b) => a - b), picked: sentence.picked.filter((place) => place !== start) };
}

/** Return a sentence with another text; what was hidden before or after the place of the change stays hidden. */
export function retype(sentence, text) {
  const old = sentence.text;
  const before = samePrefix(old, text);
  let after = 0;
  const most = Math.min(old.length, text.length) - before;
  while (after < most && old[old.length - 1 - after] === text[text.length - 1 - after]) after += 1;
  const starts = new Set(cut(text).filter((part) => part.kind === "word").map((part) => part.start));
  const moved = (place) => (place >= old.length - after ? place + text.length - old.length : place < before ? place : -1);
  const move = (places) => places.map(moved).filter((place) => starts.has(place));
  return { text, hidden: move(sentence.hidden), picked: move(sentence.picked) };
}

/** Return a sentence with a mask filled by a candidate, in whose text the other masks still stand as masks. */
export function fillIn(sentence, number, candidate) {
  const filled = candidate.text;
  const masks = partsOf(sentence).filter((part) => part.mask !== null);
  const others = masks.filter((part) => part.mask !== number);
  const hidden = [];
  let text = "";
  let end = 0;
  let count = 0;
  for (const marker of filled.matchAll(MARKER)) {
    text += filled.slice(end, marker.index);
    const part = others[count++];
    if (part?.kind === "word") hidden.push(text.length);
    text += part === undefined ? marker[0] : part.text;
    end = marker.index + marker[0].length;
  }
  text += filled.slice(end);
  const same = samePrefix(text, sentence.text.slice(0, masks[number].start));
  const put = cut(text).find((part) => part.kind === "word" && part.end > same && part.start < same + candidate.token.length);
  const picked = retype({ ...sentence, hidden: [] }, text).picked.filter((place) => place !== put?.start);
  return { text, hidden, picked: put === undefined || hidden.includes(put.start) ? picked : [...picked, put.start] };
}

/** Return a sentence with all of its masks filled together. */
export function fillAll(sentence, { text, starts }) {
  const at = codePoints(text);
  const put = starts.map((start) => wordAt(text, at[start])?.start).filter((start) => start !== undefined);
  const { picked } = retype({ ...sentence, hidden: [] }, text);
  return { text, hidden: [], picked: [...new Set([...picked, ...put])] };
}

/** Return the word of a text in which a place lies. */
export function wordAt(text, place) {
  return cut(text).find((part) => part.kind === "word" && part.start <= place && place < part.end);
}

/** Return where the characters that the server counts stand in a string of this language, which counts some as two. */
export function codePoints(text) {
  const at = [0];
  for (const character of text) at.push(at[at.length - 1] + character.length);
  return at;
}

function samePrefix(one, other) {
  let length = 0;
  while (length < one.length && length < other.length && one[length] === other[length]) length += 1;
  return length;
}
