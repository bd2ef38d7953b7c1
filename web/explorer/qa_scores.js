// Numbers over the tokens of a text out of the windows that a model read it in.

/** answer: as source.answer gives it → start and end logits of each token, in the window that decides about it. */
export function logitsByToken({ windows, tokens }) {
  const start = new Float64Array(tokens.length).fill(-Infinity), end = start.slice();
  for (const window of windows) {
    for (let token = window.ownedFirst; token <= window.ownedLast; token++) {
      start[token] = window.start[token - window.first];
      end[token] = window.end[token - window.first];
    }
  }
  return { start, end };
}

/** Softmax over all tokens. */
export function shares(logits) {
  const top = Math.max(...logits), weights = Array.from(logits, (logit) => Math.exp(logit - top));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

/** Start logit + end logit of a pair of tokens, in the window that owns its start; −∞ where no pair is. */
export function pairScore({ windows, maxAnswer = 30 }, first, last) {
  const window = windows.find(({ ownedFirst, ownedLast }) => ownedFirst <= first && first <= ownedLast);
  if (!window || last < first || last >= first + maxAnswer || last >= window.first + window.count) return -Infinity;
  return window.start[first - window.first] + window.end[last - window.first];
}

/** First and last token of an answer. */
export function tokensOf({ starts, ends }, answer) {
  const first = ends.findIndex((end) => end > answer.start);
  let last = first;
  while (last + 1 < starts.length && starts[last + 1] < answer.end) last++;
  return [first, last];
}

/** The same with the logits that make up its score: of the window that read the start. */
export function partsOf(answer, found) {
  const [first, last] = tokensOf(found, answer);
  const window = found.windows.find(({ ownedFirst, ownedLast }) => ownedFirst <= first && first <= ownedLast);
  return { first, last, start: window.start[first - window.first], end: window.end[last - window.first] };
}
