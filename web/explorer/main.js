// The page: one text through six views. Every view asks `source`, which is the local server or the page's own weights.

import { h, problem } from "./dom.js";
import { followPointerAndFocus, relight } from "./linked.js";
import { ServerSource } from "./source_server.js";
import { EXAMPLES, change, followAddress, state, whenChanged } from "./state.js";
import { drawAnswers } from "./view_answers.js";
import { AttentionView } from "./view_attention.js";
import { drawMasks, joined } from "./view_masks.js";
import { drawPredictions } from "./view_predictions.js";
import { drawQa } from "./view_qa.js";
import { drawTokens } from "./view_tokens.js";

const BLOCK = 128;
const source = globalThis.spanbertSource ?? new ServerSource();
const VIEWS = {
  tokens: ["Tokens", "The model reads no letters: words are split into tokens of its vocabulary, and each is a number (below it). ## continues a word."],
  masks: ["Masks", "In pretraining 15 % of the tokens are hidden and have to be predicted. SpanBERT hides whole spans. Choose a scheme: its masks are those of the next two views."],
  attention: ["Attention", "In every layer each token mixes in what it looks at. Point at a token or a row of the picture to see where its attention goes."],
  predictions: ["Predictions", "Two heads predict each masked token from the same encoder: MLM (masked language modelling) and SBO (span boundary objective). Here every masked token is behind [MASK]."],
  qa: ["Start and end", "To answer, the model gives every token two numbers: how well an answer would start there, and how well it would end there."],
  answers: ["Answers", "Start logit and end logit of a pair add up to its score, and the best pair is the answer."],
};
const bodies = {};
let about = {}, data = {}, newest = 0, attentionView = null, typing = 0;

async function main() {
  followAddress();
  applyTheme();
  build();
  followPointerAndFocus();
  whenChanged(refresh);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  try {
    about = await source.describe();
  } catch (error) {
    document.getElementById("facts").replaceChildren(problem(error));
    return;
  }
  describe();
  await compute(new Set(["text"]));
}

function build() {
  const examples = EXAMPLES.map(({ name, text, question }) => h("button", { class: "quiet", type: "button", click: () => change({ text, question, ...fresh() }, { step: true }) }, name));
  const text = h("textarea", { id: "text", rows: "3", spellcheck: "false", "aria-label": "Text" });
  text.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      typing = 0;
      change({ text: text.value, ...fresh() });
    }, 350);
  });
  const question = h("input", { id: "question", type: "text", maxlength: "2000", autocomplete: "off", "aria-label": "Question" });
  const form = h("form", { class: "control question", submit: (event) => { event.preventDefault(); change({ question: question.value }, { step: true }); } }, h("label", { for: "question" }, "Question"), question, h("button", { class: "button main", type: "submit" }, "Ask"));
  const nav = Object.entries(VIEWS).map(([view, [name]], index) => h("button", { type: "button", class: "quiet", click: () => goTo(view) }, `${index + 1} ${name}`));
  const theme = h("button", { id: "theme", class: "quiet", type: "button", click: () => change({ theme: isDark() ? "light" : "dark" }) });
  const share = h("button", { id: "share", class: "quiet", type: "button", click: copyLink }, "Copy link");
  const sections = Object.entries(VIEWS).map(([view, [name, words]], index) => {
    bodies[view] = h("div", { class: "view", id: `${view}-view`, "aria-live": "off" });
    const head = h("header", {}, h("h2", {}, h("span", { class: "number" }, String(index + 1)), name), h("p", { class: "about" }, words), h("p", { class: "soft extent", id: `${view}-extent` }));
    const code = h("p", { class: "code", id: `${view}-code` });
    return h("section", { class: "sheet", id: view, "aria-label": name, tabindex: "-1" }, head, view === "qa" ? form : null, bodies[view], code);
  });
  document.body.append(
    h("header", { class: "top" }, h("div", {}, h("h1", {}, "How SpanBERT reads a text"), h("p", { id: "facts", class: "soft" }, "connecting…")), h("div", { class: "actions" }, share, theme)),
    h("nav", { "aria-label": "Views" }, nav),
    h("main", {}, h("section", { class: "sheet", "aria-label": "Text" }, text, h("p", { class: "control" }, h("span", { class: "soft" }, "Write your own text above, or take an example:"), examples, h("span", { class: "soft hint" }, "A token you point at lights up in every view.")), h("div", { id: "text-problem" })), sections),
  );
  attentionView = new AttentionView(bodies.attention, { state, change });
  fields(new Set(["text", "question"]));
}

/** A view chosen in the bar: the next Tab is inside it. */
function goTo(view) {
  const section = document.getElementById(view);
  section.focus({ preventScroll: true });
  section.scrollIntoView({ block: "start" });
}

/** What belongs to the text that is left. */
function fresh() {
  return { own: [], scheme: state.scheme === "own" ? "geometric" : state.scheme, token: 1, target: null, looked: [], guesses: [] };
}

/** The fields show what has changed; what is being typed and not yet asked for stays. */
function fields(changed) {
  for (const name of ["text", "question"]) {
    const field = document.getElementById(name);
    if (changed.has(name) && field.value !== state[name]) field.value = state[name];
  }
  if (changed.has("text")) {
    clearTimeout(typing);
    typing = 0;
  }
  document.getElementById("theme").textContent = isDark() ? "Light" : "Dark";
}

function describe() {
  const { model, layers, heads, width, reader } = about;
  const shape = [layers && `${layers} layers`, heads && `${heads} heads`, width && `width ${width}`].filter(Boolean).join(", ");
  const answers = reader ? `; the model “${reader}” answers in views 5 and 6` : about.hasQa === false ? "; no model answers questions" : "";
  document.getElementById("facts").textContent = `Views 1 to 4 show the model “${model ?? "encoder"}” (${shape})${answers}.`;
  for (const view of Object.keys(VIEWS)) {
    const places = about.code?.[view];
    if (places) document.getElementById(`${view}-code`).replaceChildren("Code: ", ...places.split(", ").flatMap((place, index) => [index ? " · " : "", h("code", {}, place)]));
  }
}

function refresh(changed) {
  fields(changed);
  if (changed.has("theme")) applyTheme();
  const masksOnly = ["seed", "scheme", "own"].some((key) => changed.has(key));
  if (masksOnly && !changed.has("target") && !changed.has("looked") && (changed.has("seed") || changed.has("scheme"))) {
    change({ target: null, looked: [], guesses: [] });
  }
  if (["text", "seed", "scheme", "own", "question"].some((key) => changed.has(key))) compute(changed);
  else if (["target", "looked", "guesses"].some((key) => changed.has(key))) drawHeads();
  else if (changed.has("layer") || changed.has("head") || changed.has("token")) attentionFollows();
}

function attentionFollows() {
  if (!data.run) return;
  const { layer, head, token } = state;
  if (attentionView.layer !== layer || attentionView.head !== head || attentionView.row !== token) drawAttention();
}

/** Ask the source for what depends on what has changed, and draw it as it comes. A newer change makes an older one moot. */
async function compute(changed) {
  const number = ++newest, isOld = () => number !== newest, all = changed.has("text") || !data.encoded;
  if (all) data = {};
  else if (changed.has("question")) data.found = null;
  document.getElementById("text-problem").replaceChildren();
  document.body.setAttribute("aria-busy", "true");
  try {
    if (all) {
      if (!state.text.trim()) throw new Error("There is no text: write one above, or take an example.");
      const encoded = await source.encode(state.text);
      if (isOld()) return;
      data = { encoded, block: blockOf(encoded) };
      draw("tokens", () => drawTokens(bodies.tokens, encoded));
    }
    const answering = all || changed.has("question") || !data.found ? answer(isOld) : null;
    const masks = await source.masks(state.text, state.seed);
    if (isOld()) return;
    data.masks = masks;
    draw("masks", () => drawMasks(bodies.masks, { block: data.block, masks, state, change }));
    data.spans = spansOf(masks);
    const run = await source.run(data.block.ids, data.spans);
    if (isOld()) return;
    data.run = run;
    drawAttention();
    drawHeads();
    await answering;
  } catch (error) {
    if (isOld()) return;
    document.getElementById("text-problem").replaceChildren(problem(error));
    if (all) for (const view of Object.values(bodies)) view.replaceChildren();
  } finally {
    if (!isOld()) document.body.removeAttribute("aria-busy");
  }
}

async function answer(isOld) {
  if (about.hasQa === false) {
    const lacks = h("p", { class: "note" }, about.missing?.qa ?? "This model has no trained head for questions, so there is nothing to show here.");
    bodies.qa.replaceChildren(lacks);
    bodies.answers.replaceChildren(lacks.cloneNode(true));
    return;
  }
  if (!state.question.trim()) {
    data.found = null;
    bodies.qa.replaceChildren(h("p", { class: "note" }, "There is no question: write one above and press Ask."));
    bodies.answers.replaceChildren(h("p", { class: "note" }, "No question, no answer: ask one in view 5."));
    return;
  }
  try {
    const found = await source.answer(state.question, state.text);
    if (isOld()) return;
    data.found = withOffsets(found);
    draw("qa", () => drawQa(bodies.qa, data.found));
    draw("answers", () => drawAnswers(bodies.answers, data.found));
  } catch (error) {
    if (isOld()) return;
    data.found = null;
    bodies.qa.replaceChildren(problem(error));
    bodies.answers.replaceChildren(h("p", { class: "note" }, "There is no answer: view 5 says why."));
  }
}

/** Where a source leaves out where the tokens stand, they are those of the encoder. */
function withOffsets(found) {
  if (found.starts) return found;
  return { ...found, starts: data.encoded.starts.slice(1, -1), ends: data.encoded.ends.slice(1, -1) };
}

/** The part of the text that masks, attention and predictions show. */
function blockOf(encoded) {
  const most = about.block ?? Math.min(about.positions ?? BLOCK, BLOCK), count = encoded.tokens.length;
  const cut = (values) => (count > most ? [...values.slice(0, most - 1), values.at(-1)] : values);
  const told = count > most ? `Of this long text the first ${most - 2} tokens are shown.` : "";
  for (const view of ["masks", "attention", "predictions"]) document.getElementById(`${view}-extent`).textContent = told;
  return Object.fromEntries(Object.entries(encoded).map(([key, values]) => [key, cut(values)]));
}

function spansOf(masks) {
  const own = joined(state.own, data.block.tokens.length - 2);
  if (state.scheme === "own" || !masks) return own;
  return (masks.schemes[state.scheme] ?? Object.values(masks.schemes)[0]).spans;
}

function drawAttention() {
  const masked = new Set(data.spans.flatMap(([first, last]) => Array.from({ length: last - first + 1 }, (_, offset) => first + offset)));
  draw("attention", () => attentionView.draw(data.block, data.run, masked));
}

function drawHeads() {
  if (data.run) draw("predictions", () => drawPredictions(bodies.predictions, { block: data.block, spans: data.spans, run: data.run, about, state, change }));
}

/** Draw a view anew; the keyboard's focus stays where it was, as far as there is still such a place. */
function draw(view, drawing) {
  const body = bodies[view], path = pathTo(body, document.activeElement), name = document.activeElement?.tagName;
  drawing();
  if (path && !body.contains(document.activeElement)) {
    const same = path.reduce((element, index) => element?.children[index], body);
    const next = same?.tagName === name ? same : body.querySelector("button, [tabindex='0']");
    next?.focus({ preventScroll: true });
  }
  body.dataset.drawn = String(Number(body.dataset.drawn ?? 0) + 1);
  relight();
}

/** Which child of which child of `root` an element is; null where it is not inside. */
function pathTo(root, element) {
  const path = [];
  for (let at = element; at && at !== root; at = at.parentElement) path.unshift(Array.prototype.indexOf.call(at.parentElement?.children ?? [], at));
  return root.contains(element) && element !== root ? path : null;
}

function isDark() {
  return state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function applyTheme() {
  if (state.theme) document.documentElement.dataset.theme = state.theme;
  else delete document.documentElement.dataset.theme;
  repaint();
}

/** What is painted on canvases has the colours of the theme of then. */
function repaint() {
  if (data.run) attentionView.paint();
  for (const canvas of document.querySelectorAll("canvas")) canvas.repaint?.();
}

async function copyLink() {
  const button = document.getElementById("share");
  try {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Copy it from the address bar";
  }
  setTimeout(() => { button.textContent = "Copy link"; }, 2000);
}

main();
