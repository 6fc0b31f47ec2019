// Asking one model, or two beside each other: what is asked is its own key, and an answer to anything else is stale.

import { latest } from "./api.js";
import { debounce, el, replace } from "./dom.js";

const NOTHING = { key: null, value: null, error: null };
const ELSEWHERE = ["offline", "key", "busy"]; // what is told at the head of the page, not in a view

/**
 * Return the lanes of a view. `bodyOf(state, model)` is what is to be asked now (null: nothing), `ask(body, signal)` asks it,
 * `take(answer, state)` makes of it what is shown, and `took(lane, number, state)` may go on from there.
 */
export function createLanes(store, desk, { view, wait, bodyOf, ask, take, took = () => {} }) {
  const lanes = [0, 1].map(() => ({ ...NOTHING, asking: null, run: latest() }));
  const errors = el("div", { class: "errors", role: "alert" });
  const later = debounce(() => lanes.forEach(askOne), wait);
  const body = (state, number) => {
    const model = desk.lanes()[number];
    return model === undefined ? null : bodyOf(state, model);
  };
  const isNow = (lane, number, state) => lane.key !== null && lane.key === JSON.stringify(body(state, number));

  async function askOne(lane, number) {
    const state = store.get();
    if (state.view !== view) return;
    const wanted = body(state, number);
    const key = JSON.stringify(wanted);
    if (wanted !== null && lane.asking === key) return;
    lane.run.stop();
    lane.asking = null;
    if (wanted === null || lane.key === key) return;
    lane.asking = key;
    desk.busy(1);
    const found = await lane.run((signal) => ask(wanted, signal)).finally(() => desk.busy(-1));
    if (found === null) return; // something newer is on its way
    lane.asking = null;
    if (found.error && ELSEWHERE.includes(found.error.kind)) {
      desk.trouble(found.error, () => later(0));
      return;
    }
    Object.assign(lane, found.error ? { ...NOTHING, key, error: found.error } : { key, ...take(found.value, state) });
    desk.online();
    desk.redraw();
    if (lane.error === null) took(lane, number, state);
  }

  return {
    errors,
    later,
    /** Return what a lane has to show now; null where nothing has come yet. */
    fresh: (state, number) => (isNow(lanes[number], number, state) ? lanes[number].value : null),
    /** Return what a lane has shown last, be it stale. */
    last: (number) => lanes[number].value,
    isWaiting: (state, number) => body(state, number) !== null && !isNow(lanes[number], number, state),
    hasFailed: (state, number) => isNow(lanes[number], number, state) && lanes[number].error !== null,
    showErrors(state) {
      const names = desk.lanes();
      const failed = names.map((name, number) => [name, lanes[number]]).filter(([, lane], number) => isNow(lane, number, state) && lane.error !== null);
      const again = (lane) => () => {
        lane.key = null;
        later(0);
      };
      replace(errors, ...failed.map(([name, lane]) => el("p", { class: "error" }, names.length > 1 ? el("b", {}, `${name}: `) : null, lane.error.message,
        lane.error.kind === "failed" ? el("button", { class: "small", type: "button", onclick: again(lane) }, "Try again") : null)));
    },
  };
}
