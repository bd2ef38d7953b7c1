// What the views ask of a model, answered inside the page: no server, the weights are in the file. The same questions and
// answers as source_server.js has them.

import { answerLogits, encode, mlmLogProbs, sboLogProbs } from "./forward.js";
import { candidates, spansOfWindow, windowInput, windowsOver, withConfidence, withNothing } from "./qa.js";
import { unpackModel } from "./unpack.js";
import { WordPiece } from "./wordpiece.js";

const CLS = "[CLS]", SEP = "[SEP]", MASK = "[MASK]";
const BEST = 5, ANSWERS = 8, MOST_REMEMBERED = 30, LONGEST_TEXT = 20000;

export class StaticSource {
  /** packed: {about, tokenizers: [settings], models: {encoder, reader?: {config, tensors, tokenizer}}, masks}. */
  constructor(packed) {
    this.packed = packed;
    this.tokenizers = packed.tokenizers.map((settings) => new WordPiece(settings));
    this.loading = {};
    this.remembered = new Map();
  }

  /** A model, unpacked when it is first asked for; what the reader has in common with the encoder is there once. */
  async model(name) {
    this.loading[name] ??= unpackModel(name, this.packed.models[name]);
    const model = await this.loading[name];
    if (name === "encoder") return model;
    const { tensors } = await this.model("encoder");
    return { ...model, tensors: { ...tensors, ...model.tensors } };
  }

  tokenizer(name) {
    return this.tokenizers[this.packed.models[name].tokenizer];
  }

  async describe() {
    return this.packed.about;
  }

  /** Tokens of a text with [CLS] and [SEP] around them; starts and ends count code points. */
  async encode(text) {
    const tokenizer = this.tokenizer("encoder"), { ids, starts, ends, words } = encodeText(tokenizer, text, "text");
    const { cls, sep } = special(tokenizer), all = [cls, ...ids, sep], end = [...text].length;
    return {
      tokens: all.map((id) => tokenizer.settings.tokens[id]),
      ids: all,
      starts: [0, ...starts, end],
      ends: [0, ...ends, end],
      words: [null, ...words, null],
    };
  }

  /** Masks are drawn in Python: those of the examples are in the file, of other texts there are none. */
  async masks(text, seed) {
    const example = this.packed.masks.find((one) => one.text === text), draw = example?.draws[seed];
    if (!draw) return null;
    const schemes = Object.entries(draw.schemes).map(([name, packed]) => [name, unpackDraw(packed, example.tokens)]);
    return { schemes: Object.fromEntries(schemes), histogram: { ...example.histogram, counts: draw.counts } };
  }

  /** The tokens with their spans (first and last of each) masked: attention in 255ths, and what both heads predict. */
  run(ids, spans) {
    return this.once(["run", ids, spans], () => this.predict(ids, spans));
  }

  /** Each window's logits over its part of the text, the null score, and the best answers. */
  answer(question, text) {
    return this.once(["answer", question, text], () => this.read(question, text));
  }

  /** Several views ask the same: it is computed once, and the latest results are kept. */
  once(asked, compute) {
    const key = JSON.stringify(asked);
    if (!this.remembered.has(key)) this.remembered.set(key, paint().then(compute));
    if (this.remembered.size > MOST_REMEMBERED) this.remembered.delete(this.remembered.keys().next().value);
    return this.remembered.get(key);
  }

  async predict(ids, spans) {
    const model = await this.model("encoder"), tokenizer = this.tokenizer("encoder");
    const { hasMlm, hasSbo } = this.packed.about;
    const targets = spans.flatMap(([first, last]) => targetsOfSpan(first, last));
    const seen = ids.slice();
    for (const { position } of targets) seen[position] = special(tokenizer).mask;
    const { hidden, attention } = encode(model, seen);
    const positions = targets.map(({ position }) => position);
    const near = targets.filter(({ offset }) => offset < model.config.sbo_positions);
    return {
      attention: attention.map((heads) => heads.map(asBytes)),
      mlm: hasMlm ? best(mlmLogProbs(model, hidden, positions), targets, tokenizer) : null,
      sbo: hasSbo ? best(sboLogProbs(model, hidden, near), near, tokenizer) : null,
    };
  }

  async read(question, text) {
    const { readerSettings, missing } = this.packed.about;
    if (!readerSettings) throw new Error(missing.qa);
    const model = await this.model("reader"), tokenizer = this.tokenizer("reader");
    const settings = { ...readerSettings, n_best: Math.max(ANSWERS, readerSettings.n_best) };
    const asked = encodeText(tokenizer, question, "question"), context = encodeText(tokenizer, text, "text");
    if (asked.ids.length > settings.max_question) {
      throw new Error(`question has ${asked.ids.length} tokens, this model reads questions of at most ${settings.max_question}`);
    }
    const windows = windowsOver(asked.ids.length, context.ids.length, settings), skip = asked.ids.length + 2, spans = [];
    let nullScore = Infinity;
    for (const window of windows) {
      await paint();
      const { ids, segments } = windowInput(asked.ids, context.ids, window, special(tokenizer));
      const { start, end } = answerLogits(model, encode(model, ids, segments).hidden);
      nullScore = Math.min(nullScore, start[0] + end[0]);
      window.start = [...start.subarray(skip, -1)];
      window.end = [...end.subarray(skip, -1)];
      spans.push(...spansOfWindow(window, settings));
    }
    const found = candidates(spans, [...text], context, settings.n_best);
    const answers = withNothing(withConfidence(found, nullScore, settings), nullScore, settings);
    return {
      tokens: context.ids.map((id) => tokenizer.settings.tokens[id]),
      starts: context.starts,
      ends: context.ends,
      windows,
      nullScore,
      nullAllowed: settings.null_allowed,
      nullThreshold: settings.null_threshold,
      maxAnswer: settings.max_answer,
      answers: answers.slice(0, ANSWERS),
    };
  }
}

/** What is drawn already is seen, and the page can be scrolled, before its only thread computes again. */
function paint() {
  return new Promise((resolve) => setTimeout(resolve));
}

/** A draw's tokens: what happened to each (null: nothing), and what the model sees. */
function unpackDraw({ spans, changed }, tokens) {
  const replaced = tokens.map(() => null), seen = tokens.slice();
  for (const [at, kind = "mask", token = MASK] of changed) {
    replaced[at] = kind;
    seen[at] = token;
  }
  return { spans, replaced, seen };
}

function special(tokenizer) {
  return { cls: tokenizer.ids.get(CLS), sep: tokenizer.ids.get(SEP), mask: tokenizer.ids.get(MASK) };
}

function encodeText(tokenizer, text, field) {
  const characters = [...text].length;
  if (characters > LONGEST_TEXT) {
    throw new Error(`${field} has ${characters.toLocaleString("en")} characters, the explorer shows at most ${LONGEST_TEXT.toLocaleString("en")}`);
  }
  const encoded = tokenizer.encode(text);
  if (encoded.ids.length === 0) throw new Error(`${field} holds no token that the tokenizer knows`);
  return encoded;
}

/** Each token of a masked span, with what SBO sees of it: the tokens beside the span and its place in it. */
function targetsOfSpan(first, last) {
  return Array.from({ length: last - first + 1 }, (_, offset) => ({
    position: first + offset, left: first - 1, right: last + 1, offset,
  }));
}

/** The most probable tokens for each target, from its row of log-probabilities. */
function best(logProbs, targets, tokenizer) {
  const { tokens } = tokenizer.settings, width = logProbs.length / targets.length;
  return targets.map(({ position }, row) => ({
    position,
    best: top(logProbs.subarray(row * width, row * width + tokens.length), BEST).map((id) => ({
      token: tokens[id], id, p: Math.exp(logProbs[row * width + id]),
    })),
  }));
}

/** Where the `count` largest numbers are, largest first. */
function top(numbers, count) {
  const places = [];
  for (let i = 0; i < numbers.length; i++) {
    if (places.length === count && numbers[i] <= numbers[places.at(-1)]) continue;
    const before = places.findIndex((other) => numbers[i] > numbers[other]);
    places.splice(before < 0 ? places.length : before, 0, i);
    if (places.length > count) places.pop();
  }
  return places;
}

function asBytes(probabilities) {
  return Uint8Array.from(probabilities, (p) => Math.round(255 * p));
}
