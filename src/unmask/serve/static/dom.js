// Making elements. Text goes in as text nodes: nothing in this page becomes HTML.

export const $ = (id) => document.getElementById(id);

/** Return an element; `given` are attributes, functions (listeners of on...), and `style` for custom properties. */
export function el(name, given = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (typeof value === "function") made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Put children in the place of others; what had the focus by its data-key has it again. */
export function replace(parent, ...children) {
  const focused = parent.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  parent.replaceChildren(...children);
  if (focused !== undefined) [...parent.querySelectorAll("[data-key]")].find((one) => one.dataset.key === focused)?.focus({ preventScroll: true });
}

const made = new WeakMap();

/** Put what `make` returns into a parent, unless it holds already what goes by this name: a click that has begun must find its end there. */
export function keepOrReplace(parent, name, make) {
  if (made.get(parent) === name) return;
  made.set(parent, name);
  replace(parent, ...make());
}

/** Return a probability as a reader wants it. */
export function percent(score) {
  if (score >= 0.9995) return "100%";
  if (score >= 0.0995) return `${Math.round(score * 100)}%`;
  if (score >= 0.000995) return `${(score * 100).toPrecision(2)}%`;
  return score > 0 ? "<0.1%" : "0%";
}

/** Say something for a moment at the foot of the page, and to who listens. */
export function say(text) {
  const toast = $("toast");
  toast.textContent = text;
  toast.classList.add("shown");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => toast.classList.remove("shown"), 2600);
}

export function debounce(run, wait) {
  let timer = 0;
  const later = (milliseconds = wait) => {
    clearTimeout(timer);
    timer = setTimeout(run, milliseconds);
  };
  later.stop = () => clearTimeout(timer);
  return later;
}
