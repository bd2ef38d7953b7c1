// What the views ask of a model, answered inside the page: no server, the weights are in the file.

import { answerLogits, encode, mlmLogProbs, sboLogProbs } from "./forward.js";
import { candidates, spansOfWindow, windowInput, windowsOver, withConfidence, withNothing } from "./qa.js";
import { unpackModel } from "./unpack.js";
import { WordPiece } from "./wordpiece.js";

const BEST = 5;

/** packed: {tokenizers: [settings], models: {encoder, reader?: {config, tensors, tokenizer, …}}, about, masks}. */
export class StaticSource {
  constructor(packed) {
    this.packed = packed;
    this.tokenizers = packed.tokenizers.map((settings) => new WordPiece(settings));
    this.models = {};
  }

  /** The model `name`, unpacked when it is first asked for. */
  model(name) {
    return (this.models[name] ??= unpackModel(name, this.packed.models[name]));
  }

  tokenizer(name) {
    return this.tokenizers[this.packed.models[name].tokenizer];
  }

  async describe() {
    return this.packed.about;
  }

  /** Tokens of a text with [CLS] and [SEP] around them, which cover nothing of it. */
  async encode(text) {
    const tokenizer = this.tokenizer("encoder"), { ids, starts, ends, words } = tokenizer.encode(text);
    const end = [...text].length;
    return {
      tokens: [CLS, ...ids.map((id) => tokenizer.settings.tokens[id]), SEP],
      ids: [tokenizer.ids.get(CLS), ...ids, tokenizer.ids.get(SEP)],
      starts: [0, ...starts, end],
      ends: [0, ...ends, end],
      words: [null, ...words, null],
    };
  }

  /** Masks are drawn in Python; a few for the first text are in the file. */
  async masks(text, seed) {
    return this.packed.masks.find((mask) => mask.text === text && mask.seed === seed)?.draws ?? null;
  }

  /** The text with its spans (first and last token of each) masked: attention, and what both heads predict there. */
  async run(ids, spans) {
    const model = await this.model("encoder"), tokenizer = this.tokenizer("encoder");
    const targets = spans.flatMap(([first, last]) => targetsOfSpan(first, last));
    const seen = ids.slice();
    for (const { position } of targets) seen[position] = tokenizer.ids.get(MASK);
    const { hidden, attention } = encode(model, seen);
    const withSbo = targets.filter(({ offset }) => offset < model.config.sbo_positions);
    const predict = (rows, of) => best(rows, of.map(({ position }) => position), tokenizer);
    return {
      attention: attention.map((heads) => heads.map(asBytes)),
      mlm: predict(mlmLogProbs(model, hidden, targets.map(({ position }) => position)), targets),
      sbo: predict(sboLogProbs(model, hidden, withSbo), withSbo),
    };
  }

  async answer(question, text) {
    const model = await this.model("reader"), tokenizer = this.tokenizer("reader");
    const settings = this.packed.models.reader.qa, characters = [...text];
    const asked = tokenizer.encode(question), context = tokenizer.encode(text);
    const special = { cls: tokenizer.ids.get(CLS), sep: tokenizer.ids.get(SEP) };
    const windows = windowsOver(asked.ids.length, context.ids.length, settings), spans = [];
    let nullScore = Infinity;
    for (const window of windows) {
      const { ids, segments } = windowInput(asked.ids, context.ids, window, special);
      const { start, end } = answerLogits(model, encode(model, ids, segments).hidden);
      const skip = asked.ids.length + 2;
      nullScore = Math.min(nullScore, start[0] + end[0]);
      Object.assign(window, { start: start.subarray(skip), end: end.subarray(skip) });
      spans.push(...spansOfWindow(window.start, window.end, window, settings));
    }
    let answers = withConfidence(candidates(spans, characters, context, settings.nBest), nullScore, settings.nullAllowed);
    if (settings.nullAllowed) answers = withNothing(answers, nullScore, settings.nullThreshold);
    return { tokens: context.ids.map((id) => tokenizer.settings.tokens[id]), windows, nullScore, answers };
  }
}

const CLS = "[CLS]", SEP = "[SEP]", MASK = "[MASK]";

/** Each token of a masked span, with what SBO sees of it: the tokens beside the span and its place in it. */
function targetsOfSpan(first, last) {
  return Array.from({ length: last - first + 1 }, (_, offset) => ({
    position: first + offset, left: first - 1, right: last + 1, offset,
  }));
}

/** The most probable tokens of each row of log-probabilities. */
function best(logProbs, positions, tokenizer) {
  const V = tokenizer.settings.tokens.length, width = logProbs.length / Math.max(1, positions.length);
  return positions.map((position, row) => {
    const chosen = [];
    for (let id = 0; id < V; id++) {
      const logP = logProbs[row * width + id];
      if (chosen.length === BEST && logP <= chosen[BEST - 1].logP) continue;
      const place = chosen.findIndex((other) => logP > other.logP);
      chosen.splice(place < 0 ? chosen.length : place, 0, { id, logP });
      chosen.length = Math.min(chosen.length, BEST);
    }
    return { position, best: chosen.map(({ id, logP }) => ({ token: tokenizer.settings.tokens[id], id, p: Math.exp(logP) })) };
  });
}

function asBytes(probabilities) {
  return Uint8Array.from(probabilities, (p) => Math.round(255 * p));
}
