// What fills several masks together. It takes the server longer than a list for each mask, so it is asked when those are there.

import { fill, latest } from "./api.js";
import { el, percent, replace } from "./dom.js";
import { scaleOf } from "./lists.js";

const MOST = 6; // masks: for more the server would have to search too long
const TOP = 5;

/** Return the panel; `pick(filling)` is called with what is to stand at all masks, `redraw()` when something has come. */
export function createTogether(pick, redraw) {
  const sides = [0, 1].map(createSide);
  const scaleNote = el("span", { class: "quiet scale" });
  const node = el("section", { class: "together", "aria-label": "All masks together", hidden: true },
    el("div", { class: "panel-head" }, el("span", {}, "All together"), scaleNote), el("div", { class: "lanes" }, ...sides.map((side) => side.node)));

  function createSide(number) {
    const name = el("h3", {});
    const list = el("ol", { class: "list" });
    return { name, list, node: el("div", { class: `lane lane${number}` }, name, list), run: latest(), asking: null, key: null, found: null, error: null };
  }

  function row(filling, side, place, scale) {
    const bar = el("i");
    bar.style.setProperty("--share", String(filling.score / scale));
    const words = filling.tokens.join(" · ");
    const given = { type: "button", class: "row", "data-key": `together.${side}.${place}`, title: filling.text, "aria-label": `${filling.tokens.join(", ")}: ${percent(filling.score)}` };
    return el("li", {}, el("button", { ...given, onclick: () => pick(filling) }, el("kbd", { "aria-hidden": "true" }), el("span", { class: "word-of" }, el("b", {}, words)),
      el("span", { class: "track", "aria-hidden": "true" }, bar), el("span", { class: "score" }, percent(filling.score))));
  }

  return {
    node,
    /** Ask for a lane, whose key is the request for its lists. */
    async ask(number, key) {
      const side = sides[number];
      if (node.hidden || side.key === key || side.asking === key) return;
      side.asking = key;
      const found = await side.run((signal) => fill({ ...JSON.parse(key), top_k: TOP, joint: true }, signal));
      if (found === null) return; // something newer is on its way
      Object.assign(side, { asking: null, key, found: found.value?.joint ?? [], error: found.error?.message ?? null });
      redraw();
    },
    /** Show what has come for the requests that the lists are of now; `wanted` is whether there is anything to fill together. */
    show({ keys, names, count, wanted }) {
      node.hidden = !wanted || count < 2 || count > MOST;
      if (node.hidden) return;
      const scale = scaleOf(sides.map((side, number) => (side.key === keys[number] && side.found) || []));
      scaleNote.textContent = `a full bar is ${scale * 100}%`;
      node.classList.toggle("two", names.length > 1);
      sides.forEach((side, number) => {
        side.node.hidden = number > 0 && number >= names.length;
        side.name.textContent = names[number] ?? "";
        side.name.hidden = names.length < 2;
        const fresh = side.key === keys[number];
        side.list.classList.toggle("stale", !fresh);
        side.list.setAttribute("aria-busy", String(!fresh));
        if (fresh) replace(side.list, ...(side.error === null ? side.found.map((filling, place) => row(filling, number, place, scale)) : [el("li", { class: "quiet" }, side.error)]));
      });
    },
  };
}
