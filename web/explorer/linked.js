// One token, lit in every view. Elements say which characters of the text they stand for (data-start, data-end, in code
// points) and, where they are tokens of the encoder, which one (data-token); views that draw on a canvas listen instead.

let current = null;
const listeners = new Set();

export function whenLit(listener) {
  listeners.add(listener);
}

export function lit() {
  return current;
}

/** place: {start, end, token?}, or null for nothing. */
export function light(place) {
  if (place === null && current === null) return;
  if (place && current && place.start === current.start && place.end === current.end && place.token === current.token) return;
  current = place;
  relight();
  for (const listener of listeners) listener(current);
}

/** After a view has drawn itself anew. */
export function relight() {
  for (const element of document.querySelectorAll(".lit")) element.classList.remove("lit");
  if (!current) return;
  for (const element of document.querySelectorAll("[data-start]")) if (matches(placeOf(element), current)) element.classList.add("lit");
}

export function placeOf(element) {
  const { start, end, token } = element.dataset;
  return { start: Number(start), end: Number(end), token: token === undefined ? undefined : Number(token) };
}

export function matches(one, other) {
  if (one.end > one.start && other.end > other.start) return one.start < other.end && other.start < one.end;
  return one.token !== undefined && one.token === other.token;
}

/** Pointer and keyboard, for all views at once. */
export function followPointerAndFocus() {
  const at = (event) => (event.target instanceof Element ? event.target.closest("[data-start]") : null);
  document.addEventListener("pointerover", (event) => {
    const element = at(event);
    if (element) light(placeOf(element));
    else if (!(event.target instanceof Element && event.target.closest("canvas"))) light(null);
  });
  document.addEventListener("focusin", (event) => {
    const element = at(event);
    if (element) light(placeOf(element));
  });
}

/** A row of elements that Tab enters once and the arrow keys walk through. moved(index, event) hears of every step. */
export function walkable(elements, { at = 0, moved = null } = {}) {
  elements.forEach((element, index) => {
    element.tabIndex = index === Math.min(at, elements.length - 1) ? 0 : -1;
    element.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: elements.length - 1 };
      const next = steps[event.key];
      if (next === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const target = elements[Math.max(0, Math.min(elements.length - 1, next))];
      for (const other of elements) other.tabIndex = -1;
      target.tabIndex = 0;
      target.focus();
      if (moved) moved(elements.indexOf(target), event);
    });
  });
}
