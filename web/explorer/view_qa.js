// 5. Where an answer may start and end: heat over the text, windows and their seams, and all pairs.

import { colourOf, continues, h, number, percent, plain, s, spaced, tokenClass } from "./dom.js";
import { light, walkable } from "./linked.js";
import { logitsByToken, pairScore, partsOf, shares } from "./qa_scores.js";

const CELLS = 36; // most tokens on a side of the triangle
const SIDE = 468;

/** found: as source.answer gives it, with starts and ends of its tokens. */
export function drawQa(root, found) {
  const logits = logitsByToken(found), start = shares(logits.start), end = shares(logits.end);
  const best = found.answers.find((answer) => answer.text), parts = best ? partsOf(best, found) : null;
  root.replaceChildren(
    heat(found, start, end, parts),
    h("p", { class: "legend" }, h("span", { class: "swatch start" }), " an answer may start here ", h("span", { class: "swatch end" }), " an answer may end here ", found.windows.length > 1 ? [h("span", { class: "seam-mark" }), " seam: left of it one window decides, right of it the next"] : ""),
    h("div", { class: "qa-two" }, triangle(found, parts), h("div", { class: "qa-side" }, nullScore(found, best), windows(found))),
  );
}

function heat(found, start, end, parts) {
  const seams = new Set(found.windows.slice(1).map(({ ownedFirst }) => ownedFirst));
  const elements = found.tokens.map((token, index) => {
    const chosen = parts && index >= parts.first && index <= parts.last ? "chosen" : "";
    const element = h("span", { class: tokenClass(found.tokens, index, "heat", chosen, seams.has(index) ? "seam" : ""), title: `start ${percent(start[index])}, end ${percent(end[index])}`, data: { start: found.starts[index], end: found.ends[index] } }, plain(token));
    element.style.setProperty("--start", `${Math.round(100 * Math.sqrt(start[index]))}%`);
    element.style.setProperty("--end", `${Math.round(100 * Math.sqrt(end[index]))}%`);
    return element;
  });
  walkable(elements, { at: parts?.first ?? 0 });
  const line = h("div", { class: "line heats", data: { view: "qa" }, role: "group", "aria-label": "The text: where answers start and end" }, spaced(elements));
  if (parts) requestAnimationFrame(() => line.scrollTo(0, elements[parts.first].offsetTop - line.clientHeight / 2));
  return line;
}

function nullScore(found, best) {
  const allowed = found.nullAllowed ?? found.answers.some((answer) => !answer.text), odds = best ? found.nullScore - best.score : 0;
  const said = h("p", {}, h("b", {}, "No answer "), `scores ${number(found.nullScore)} (start and end logit of [CLS]), the best answer ${best ? number(best.score) : "nothing"}.`);
  const rule = allowed
    ? `The model declines when the first exceeds the second by more than ${number(found.nullThreshold ?? 0)}; the difference is ${number(odds)}, so it ${odds > (found.nullThreshold ?? 0) ? "declines" : "answers"}.`
    : "This model was trained on questions that all have an answer, so it never declines: its null score is shown and takes no part.";
  return h("div", {}, h("h3", {}, "Null score"), said, h("p", { class: "soft" }, rule));
}

function windows({ windows: all, tokens }) {
  const width = 400, row = 16, height = all.length * row + 22, x = (token) => (token / tokens.length) * width;
  const drawn = all.flatMap((window, index) => [
    s("rect", { x: x(window.first), y: index * row + 4, width: x(window.count), height: 10, rx: 3, class: "window" }),
    s("rect", { x: x(window.ownedFirst), y: index * row + 4, width: Math.max(1, x(window.ownedLast + 1 - window.ownedFirst)), height: 10, rx: 3, class: "owned" }),
  ]);
  const told = all.length === 1
    ? "The whole text fits into one window, so there is no seam. A longer text is read in overlapping windows: try “A long text”."
    : `The text is read in ${all.length} windows that overlap (light). Each token is decided on in the window where it has most text around it (dark).`;
  return h("div", {}, h("h3", {}, "Windows"), s("svg", { viewBox: `0 0 ${width} ${height}`, class: "windows", role: "img", "aria-label": told }, drawn, s("text", { x: 0, y: height - 4, class: "axis-left" }, "token 1"), s("text", { x: width, y: height - 4, class: "axis-right" }, String(tokens.length))), h("p", { class: "soft" }, told));
}

/** All pairs of a start and an end around the best answer; below the diagonal an answer would end before it starts. */
function triangle(found, parts) {
  const count = Math.min(CELLS, found.tokens.length), centre = parts ? (parts.first + parts.last) / 2 : 0;
  const low = Math.max(0, Math.min(found.tokens.length - count, Math.round(centre - count / 2)));
  const canvas = h("canvas", { width: SIDE, height: SIDE, class: "triangle", role: "img", "aria-label": "Scores of all pairs of start and end around the best answer; the listed answers below are its brightest cells" });
  const told = h("p", { class: "told", "aria-live": "off" });
  const say = (first, last) => {
    const text = found.tokens.slice(first, last + 1).map((token, index) => (index && !continues(token) ? " " : "") + plain(token)).join("");
    const score = pairScore(found, first, last);
    told.replaceChildren(...(Number.isFinite(score) ? [h("b", {}, text), ` scores ${number(score)}`] : ["No pair: ", last < first ? "it would end before it starts." : "too long for an answer."]));
  };
  const paint = () => {
    const context = canvas.getContext("2d"), cell = SIDE / count, [red, green, blue] = colourOf(canvas);
    const top = Math.max(...found.answers.filter(({ text }) => text).map(({ score }) => score));
    context.clearRect(0, 0, SIDE, SIDE);
    for (let row = 0; row < count; row++) {
      for (let column = 0; column < count; column++) {
        const score = pairScore(found, low + row, low + column);
        if (!Number.isFinite(score)) continue;
        context.fillStyle = `rgba(${red}, ${green}, ${blue}, ${0.06 + 0.94 * Math.exp((score - top) / 3)})`;
        context.fillRect(column * cell + 0.5, row * cell + 0.5, cell - 1, cell - 1);
      }
    }
    context.strokeStyle = getComputedStyle(canvas).getPropertyValue("outline-color");
    context.lineWidth = 2;
    if (parts) context.strokeRect((parts.last - low) * cell, (parts.first - low) * cell, cell, cell);
  };
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect(), at = (value, size) => low + Math.min(count - 1, Math.max(0, Math.floor((value / size) * count)));
    const last = at(event.clientX - box.left, box.width), first = at(event.clientY - box.top, box.height);
    say(first, last);
    if (last >= first) light({ start: found.starts[first], end: found.ends[last] });
  });
  canvas.addEventListener("pointerleave", () => { light(null); if (parts) say(parts.first, parts.last); });
  canvas.repaint = paint;
  requestAnimationFrame(paint);
  if (parts) say(parts.first, parts.last);
  const range = count < found.tokens.length ? ` around the best answer (tokens ${low + 1} to ${low + count})` : "";
  return h("div", {}, h("h3", {}, "All pairs"), canvas, told, h("p", { class: "soft" }, `Row: where an answer starts; column: where it ends${range}. The stronger the colour, the higher start logit + end logit. The outlined pair is the best.`));
}
