// 4. Each masked token: what MLM says beside what SBO says, after the reader's own guess.

import { h, percent, plain, s, spaced, tokenClass } from "./dom.js";
import { walkable } from "./linked.js";

/** spans: first and last token of each; run: as source.run gives it; about: as source.describe gives it. */
export function drawPredictions(root, { block, spans, run, about, state, change }) {
  const targets = spans.flatMap(([first, last], span) => Array.from({ length: last - first + 1 }, (_, offset) => ({ position: first + offset, first, last, span, offset })));
  if (!targets.length) {
    root.replaceChildren(h("p", { class: "facts" }, "Nothing is masked. Choose a scheme or spans of your own in the masks above."));
    return;
  }
  const target = targets.find(({ position }) => position === state.target) ?? targets[0];
  const looked = state.looked.includes(target.position);
  root.replaceChildren(
    h("div", { class: "tabs-row" }, tabs(targets, target, block, state, change), targets.every(({ position }) => state.looked.includes(position)) ? null : h("button", { class: "quiet", type: "button", click: () => change({ looked: targets.map(({ position }) => position) }) }, "Show all")),
    sentence(block, targets, target, state),
    looked ? revealed(block, target, run, about, state) : guessing(target, state, change),
  );
}

function tabs(targets, target, block, state, change) {
  const buttons = targets.map(({ position, span, offset }) => {
    const known = state.looked.includes(position), name = known ? plain(block.tokens[position]) : "?";
    const button = h("button", { type: "button", class: `tab${offset ? " joined" : ""}`, "aria-pressed": String(position === target.position), title: `span ${span + 1}, place ${offset + 1}: token ${position}`, data: { position }, click: () => go(position) }, name);
    return button;
  });
  const go = (position) => change({ target: position });
  walkable(buttons, { at: targets.indexOf(target) });
  return h("div", { class: "tabs", role: "group", "aria-label": "Masked tokens" }, buttons);
}

/** The text around the span, as the model sees it. */
function sentence(block, targets, target, state) {
  const { tokens, starts, ends } = block, masked = new Map(targets.map((one) => [one.position, one]));
  const low = Math.max(0, target.first - 12), high = Math.min(tokens.length - 1, target.last + 12);
  const parts = [];
  for (let index = low; index <= high; index++) {
    const hidden = masked.get(index), known = hidden && state.looked.includes(index);
    const kind = index === target.position ? "blank now" : hidden ? "blank" : "";
    const boundary = index === target.first - 1 || index === target.last + 1 ? "boundary" : "";
    const place = hidden && !known ? {} : { data: { start: starts[index], end: ends[index], token: index } };
    parts.push(h("span", { class: hidden ? `tok ${kind} ${boundary}` : tokenClass(tokens, index, boundary), ...place }, hidden && !known ? "\u2007?\u2007" : plain(tokens[index])));
  }
  return h(
    "div",
    { class: "context" },
    h("p", { class: "line", data: { view: "predictions" } }, low ? "… " : "", spaced(parts), high < tokens.length - 1 ? " …" : ""),
    h("p", { class: "legend" }, h("span", { class: "tok boundary" }, "word"), " beside the span: SBO reads the states of these two"),
  );
}

function guessing(target, state, change) {
  const input = h("input", { type: "text", maxlength: "40", autocomplete: "off", spellcheck: "false", id: "guess", placeholder: "one word, or part of one" });
  const look = (event) => {
    event.preventDefault();
    const guess = input.value.trim(), guesses = guess ? [...state.guesses, [target.position, guess]] : state.guesses;
    change({ guesses, looked: [...state.looked, target.position] });
  };
  return h("form", { class: "guess", submit: look }, h("label", { for: "guess" }, `Guess before you look: which token stands at place ${target.offset + 1} of this span?`), h("div", { class: "control" }, input, h("button", { class: "button main", type: "submit" }, "Look")), h("p", { class: "soft" }, "With or without a guess, Look shows what each head reads and predicts."));
}

function revealed(block, target, run, about, state) {
  const truth = block.ids[target.position], name = plain(block.tokens[target.position]);
  const guess = state.guesses.find(([position]) => position === target.position)?.[1];
  const right = guess !== undefined && guess.toLowerCase() === name.toLowerCase();
  const find = (rows) => rows?.find(({ position }) => position === target.position)?.best;
  const told = guess === undefined ? "" : right ? ` You guessed it.` : ` You guessed “${guess}”.`;
  const missing = about.missing ?? {}, far = `Place ${target.offset + 1} lies beyond the ${about.sboPositions ?? ""} places that this head knows.`;
  return h(
    "div",
    {},
    h("p", { class: "facts" }, "The text has ", h("b", { data: { start: block.starts[target.position], end: block.ends[target.position], token: target.position } }, name), " here.", told),
    h(
      "div",
      { class: "heads-two" },
      card("MLM", "reads the last state of the masked token itself.", diagram(block, target, "mlm"), about.hasMlm === false ? missing.mlm ?? "This model has no MLM head." : null, find(run.mlm), truth),
      card("SBO", "reads only the state left of the span, the state right of it, and the place.", diagram(block, target, "sbo"), about.hasSbo === false ? missing.sbo ?? "This model has no SBO head." : find(run.sbo) ? null : far, find(run.sbo), truth),
    ),
    h("p", { class: "soft" }, "SBO is not blind to the rest of the text: its two boundary states come out of the last layer, so through attention they have already seen every visible token. What it may not use is the output at the masked places."),
  );
}

function card(name, reads, picture, lacks, best, truth) {
  const children = lacks ? [h("p", { class: "note" }, lacks)] : [bars(best ?? [], truth)];
  return h("section", { class: `head-card ${name.toLowerCase()}`, "aria-label": name }, h("h3", {}, name, h("span", { class: "soft" }, ` ${reads}`)), picture, ...children);
}

function bars(best, truth) {
  const inside = best.some(({ id }) => id === truth), top = Math.max(...best.map(({ p }) => p), 0.0001);
  const rows = best.map(({ token, id, p }) => {
    const fill = h("span", { class: "fill" });
    fill.style.width = `${Math.max(1, (100 * p) / Math.max(top, 0.25))}%`;
    return h("li", { class: id === truth ? "true" : "" }, h("span", { class: "guess-token" }, token), h("span", { class: "track" }, fill), h("span", { class: "p" }, percent(p)), h("span", { class: "tick", "aria-label": id === truth ? "the text's own token" : "" }, id === truth ? "✓" : ""));
  });
  return h("div", {}, h("ol", { class: "best" }, rows), inside ? "" : h("p", { class: "soft" }, "The text's own token is not among the five best."));
}

function short(token) {
  const characters = Array.from(plain(token));
  return characters.length > 9 ? `${characters.slice(0, 8).join("")}…` : characters.join("");
}

/** What a head is given: the boxes that it reads are filled, the rest is faint. */
function diagram(block, target, head) {
  const { first, last, offset } = target, size = last - first + 1, shown = Math.min(size, 4), from = Math.min(Math.max(0, offset - shown + 1), size - shown);
  const boxes = [{ name: short(block.tokens[first - 1]), reads: head === "sbo", label: "left" }];
  for (let place = from; place < from + shown; place++) boxes.push({ name: "[MASK]", reads: head === "mlm" && place === offset, now: place === offset, label: `place ${place + 1}` });
  boxes.push({ name: short(block.tokens[last + 1]), reads: head === "sbo", label: "right" });
  const width = 400, gap = 6, each = (width - gap * (boxes.length - 1)) / boxes.length, middle = width / 2;
  const parts = boxes.flatMap((box, index) => {
    const x = index * (each + gap), centre = x + each / 2;
    const drawn = [
      s("rect", { x: x + 1, y: 84, width: each - 2, height: 30, rx: 6, class: `state${box.reads ? " reads" : ""}${box.now ? " now" : ""}` }),
      s("text", { x: centre, y: 104, class: box.reads ? "in" : "out" }, box.name),
      s("text", { x: centre, y: 132, class: "under" }, box.label),
    ];
    if (box.reads) drawn.push(s("path", { d: `M${centre} 84 C ${centre} 58, ${middle} 62, ${middle} 38`, class: "wire" }));
    return drawn;
  });
  const inputs = head === "sbo" ? [s("rect", { x: 268, y: 8, width: 92, height: 26, rx: 13, class: "state reads" }), s("text", { x: 314, y: 26, class: "in" }, `place ${offset + 1}`), s("path", { d: `M268 21 L 248 21`, class: "wire" })] : [];
  const title = head === "sbo" ? `SBO reads the states of “${plain(block.tokens[first - 1])}” and “${plain(block.tokens[last + 1])}” and the place ${offset + 1}` : "MLM reads the state of the masked token";
  return s("svg", { viewBox: `0 0 ${width} 140`, class: "diagram", role: "img", "aria-label": title }, parts, s("rect", { x: 152, y: 4, width: 96, height: 34, rx: 8, class: "head-box" }), s("text", { x: 200, y: 26, class: "head-name" }, `${head.toUpperCase()} head`), inputs);
}
