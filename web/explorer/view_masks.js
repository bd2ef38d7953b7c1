// 2. Masks: what each scheme hides, span lengths against theory, and spans of the reader's own.

import { h, percent, plain, s, spaced, tokenClass } from "./dom.js";
import { walkable } from "./linked.js";

export const NAMES = {
  geometric: ["Spans", "SpanBERT: whole words in a row, of geometric length"],
  whole_word: ["Whole words", "single words, with all of their tokens"],
  subword: ["Subwords", "single tokens, as in BERT"],
  own: ["Your own", "drag over the tokens, or Shift + arrows and Enter"],
};

/** block: the encoded tokens that are shown; masks: as source.masks gives them, or null; state, change: the page's. */
export function drawMasks(root, { block, masks, state, change }) {
  const schemes = masks ? Object.keys(masks.schemes) : [];
  const rows = schemes.map((scheme) => schemeRow(scheme, block, masks.schemes[scheme], state, change));
  rows.push(ownRow(block, state, change));
  if (!root.firstChild) root.append(h("div"), h("div"));
  const [control, body] = root.children;
  showSeed(control, masks, state, change);
  body.replaceChildren(
    h("div", { class: "schemes" }, rows),
    h(
      "p",
      { class: "legend" },
      h("span", { class: "tok mask" }, "word"), " hidden behind [MASK] (80 %) ",
      h("span", { class: "tok random" }, "word"), " replaced by a random token (10 %) ",
      h("span", { class: "tok same" }, "word"), " left as it is, but to be predicted (10 %)",
    ),
    masks?.histogram ? histogram(masks.histogram) : "",
  );
}

/** The slider stays while it is dragged, whatever is drawn below it. */
function showSeed(control, masks, state, change) {
  const kept = control.querySelector("input");
  if (!masks) {
    control.replaceChildren(h("p", { class: "facts" }, "This file holds the masks of its example texts alone. For this text drag over the tokens below, and your spans are masked; “spanbert explore” without --html draws masks for every text."));
  } else if (kept) {
    kept.value = String(state.seed);
    control.querySelector("output").textContent = String(state.seed);
  } else {
    let waiting = 0;
    const moved = () => {  // while it is dragged, not every seed on the way is asked for
      clearTimeout(waiting);
      waiting = setTimeout(() => change({ seed: Number(slider.value) }), 60);
      control.querySelector("output").textContent = slider.value;
    };
    const slider = h("input", { type: "range", min: "0", max: "99", id: "seed", input: moved });
    slider.value = String(state.seed);
    control.replaceChildren(h("p", { class: "control" }, h("label", { for: "seed" }, "Seed"), slider, h("output", { for: "seed" }, String(state.seed)), h("span", { class: "soft" }, "another seed, other masks; the same seed always gives the same ones")));
  }
}

function heading(scheme, state, change, about) {
  const [name, words] = NAMES[scheme] ?? [scheme, ""];
  const radio = h("input", { type: "radio", name: "scheme", value: scheme, change: () => change({ scheme }) });
  radio.checked = state.scheme === scheme;
  return h("div", { class: "scheme-head" }, h("label", {}, radio, h("b", {}, name)), h("span", { class: "soft" }, words), h("span", { class: "soft count" }, about));
}

function token(block, index, kind, extra = {}) {
  const { tokens, starts, ends } = block;
  return h("span", { class: tokenClass(tokens, index, kind), data: { start: starts[index], end: ends[index], token: index }, ...extra }, plain(tokens[index]));
}

function schemeRow(scheme, block, draw, state, change) {
  const titles = { mask: () => "the model sees [MASK]", random: (index) => `the model sees ${draw.seen?.[index] ?? "a random token"}`, same: () => "left as it is" };
  const elements = block.tokens.map((_, index) => {
    const kind = draw.replaced[index] ?? null, made = token(block, index, kind, kind ? { title: titles[kind](index) } : {});
    if (kind === "random" && draw.seen) made.append(h("small", {}, `→ ${plain(draw.seen[index])}`));
    return made;
  });
  walkable(elements, { at: 1 });
  const masked = draw.replaced.filter(Boolean).length, spans = draw.spans.length;
  const about = `${masked} of ${block.tokens.length - 2} tokens in ${spans} span${spans === 1 ? "" : "s"}`;
  return h("div", { class: "scheme" }, heading(scheme, state, change, about), h("div", { class: "line", data: { scheme } }, spaced(elements)));
}

/** Spans of the reader's own, apart from one another: spans that touch become one. */
export function joined(spans, last) {
  const kept = spans.map(([a, b]) => [Math.max(1, Math.min(a, b)), Math.min(last, Math.max(a, b))]).filter(([a, b]) => a <= b);
  kept.sort((one, other) => one[0] - other[0]);
  const merged = [];
  for (const [first, end] of kept) {
    if (merged.length && first <= merged.at(-1)[1] + 1) merged.at(-1)[1] = Math.max(merged.at(-1)[1], end);
    else merged.push([first, end]);
  }
  return merged;
}

function ownRow(block, state, change) {
  const last = block.tokens.length - 2, spans = joined(state.own, last);
  const inside = (index) => spans.some(([a, b]) => a <= index && index <= b);
  const elements = block.tokens.map((_, index) => token(block, index, inside(index) ? "mask" : null));
  let anchor = null, head = null;
  const choose = (index) => {
    head = Math.max(1, Math.min(last, index));
    const [low, high] = [Math.min(anchor, head), Math.max(anchor, head)];
    elements.forEach((element, place) => element.classList.toggle("choosing", place >= low && place <= high));
  };
  const commit = () => {
    if (anchor === null) return;
    const chosen = [Math.min(anchor, head), Math.max(anchor, head)];
    anchor = null;
    const removes = chosen[0] === chosen[1] && inside(chosen[0]);
    const own = removes ? spans.filter(([a, b]) => chosen[0] < a || chosen[0] > b) : joined([...spans, chosen], last);
    change({ own, scheme: own.length ? "own" : state.scheme, target: null, looked: [], guesses: [] });
  };
  const abandon = () => {
    anchor = null;
    elements.forEach((element) => element.classList.remove("choosing"));
  };
  const line = h("div", { class: "line own", data: { scheme: "own" }, role: "group", "aria-label": "Choose spans: Shift and arrows, Home or End select, Enter masks or unmasks, Escape abandons" }, spaced(elements));
  line.addEventListener("pointerdown", (event) => {
    const element = event.target.closest("[data-token]");
    if (!element || event.button) return;
    anchor = Math.max(1, Math.min(last, Number(element.dataset.token)));
    choose(anchor);
    event.preventDefault();
  });
  line.addEventListener("pointermove", (event) => {
    if (anchor === null) return;
    const element = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-scheme=own] [data-token]");
    if (element) choose(Number(element.dataset.token));
  });
  line.addEventListener("pointerup", commit);
  line.addEventListener("pointerleave", commit);
  line.addEventListener("pointercancel", abandon);
  walkable(elements, {
    at: spans[0]?.[0] ?? 1,
    moved: (index, event) => {
      if (!event.shiftKey) {
        abandon();
        return;
      }
      anchor ??= Math.max(1, Math.min(last, Number(event.target.dataset.token)));
      choose(index);
    },
  });
  line.addEventListener("keydown", (event) => {
    if (event.key === "Escape") abandon();
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    if (anchor === null) {
      anchor = Math.max(1, Math.min(last, Number(event.target.dataset.token)));
      head = anchor;
    }
    commit();
  });
  const clear = h("button", { class: "quiet", type: "button", click: () => change({ own: [], scheme: "geometric", target: null, looked: [], guesses: [] }) }, "Clear");
  const row = h("div", { class: "scheme" }, heading("own", state, change, ""), line);
  if (spans.length) row.firstChild.append(clear);
  return row;
}

function histogram({ lengths, counts, theory, draws }) {
  const total = counts.reduce((sum, count) => sum + count, 0) || 1, shares = counts.map((count) => count / total);
  const top = Math.max(...shares, ...theory), width = 560, height = 170, floor = 140, left = 8, step = (width - 2 * left) / lengths.length;
  const y = (share) => floor - (share / top) * 118;
  const bars = lengths.flatMap((length, index) => {
    const x = left + index * step;
    return [
      s("rect", { x: x + step * 0.18, y: y(shares[index]), width: step * 0.64, height: floor - y(shares[index]), class: "bar" }),
      s("text", { x: x + step / 2, y: y(Math.max(shares[index], theory[index])) - 7, class: "value" }, percent(shares[index])),
      s("line", { x1: x + step * 0.08, x2: x + step * 0.92, y1: y(theory[index]), y2: y(theory[index]), class: "theory" }),
      s("text", { x: x + step / 2, y: floor + 18, class: "axis" }, String(length)),
    ];
  });
  const mean = (of) => lengths.reduce((sum, length, index) => sum + length * of[index], 0).toFixed(2);
  return h(
    "figure",
    { class: "histogram" },
    s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Span lengths in words: measured shares as bars, theory as lines" }, s("line", { x1: left, x2: width - left, y1: floor, y2: floor, class: "base" }), bars),
    h(
      "figcaption",
      { class: "soft" },
      `Span lengths in words: ${total.toLocaleString("en")} spans of ${draws} draws as bars (mean ${mean(shares)}), the truncated geometric distribution as lines (mean ${mean(theory)}). A draw ends when 15\u00a0% of the tokens are masked, which shortens its last span, and long spans find a free place more rarely.`,
    ),
  );
}
