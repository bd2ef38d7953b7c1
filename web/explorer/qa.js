// From start and end logits to answers, as finetune/tasks/qa has it: windows, spans, the null score. Texts are arrays of
// code points here, and tokens of the context are counted from 0.

const SPECIALS = 3; // [CLS] and two [SEP]

/** Windows over a context: steps of `stride` until its end is inside one. → [{first, count, ownedFirst, ownedLast}]
 *
 * Where two windows overlap, a token counts in the one with more context around it: the earlier one up to the middle. */
export function windowsOver(questionLength, contextLength, { window, stride }) {
  const room = window - SPECIALS - questionLength, windows = [];
  for (let first = 0; ; first += stride) {
    const count = Math.min(room, contextLength - first);
    windows.push({ first, count, ownedFirst: 0, ownedLast: first + count - 1 });
    if (first + room >= contextLength) break;
  }
  for (let i = 1; i < windows.length; i++) {
    const earlier = windows[i - 1], middle = Math.floor((earlier.first + earlier.count - 1 + windows[i].first) / 2);
    earlier.ownedLast = middle;
    windows[i].ownedFirst = middle + 1;
  }
  return windows;
}

/** [CLS] question [SEP] part of the context [SEP], segments 0 and 1. */
export function windowInput(question, context, { first, count }, { cls, sep }) {
  const part = context.slice(first, first + count);
  const ids = [cls, ...question, sep, ...part, sep];
  return { ids, segments: Uint8Array.from(ids, (_, t) => (t < question.length + 2 ? 0 : 1)) };
}

/** The best spans that start in what a window owns, best first: [{score, first, last}], score = start + end logit. */
export function spansOfWindow({ first, count, ownedFirst, ownedLast, start, end }, { max_answer, n_best }) {
  const spans = [];
  for (let s = ownedFirst - first; s <= ownedLast - first; s++) {
    for (let e = s; e < Math.min(s + max_answer, count); e++) {
      spans.push({ score: Math.fround(start[s] + end[e]), first: first + s, last: first + e });
    }
  }
  return spans.sort(bestFirst).slice(0, n_best);
}

/** Spans of all windows as texts, best first; a text that stands twice is taken where it scores best. */
export function candidates(spans, text, encoded, nBest) {
  const found = new Map();
  for (const { score, first, last } of spans.sort(bestFirst)) {
    const [start, end] = wholeClusters(text, encoded.starts[first], encoded.ends[last]);
    const words = text.slice(start, end).join("");
    if (!found.has(words)) found.set(words, { text: words, start, end, score });
    if (found.size === nBest) break;
  }
  return [...found.values()];
}

/** Probabilities by a softmax over the candidates, and over "no answer" where the model may say so. */
export function withConfidence(answers, nullScore, { null_allowed }) {
  const scores = answers.map((answer) => answer.score), all = null_allowed ? [...scores, nullScore] : scores;
  const top = Math.max(...all), total = all.reduce((sum, score) => sum + Math.exp(score - top), 0);
  return answers.map((answer) => ({ ...answer, confidence: Math.exp(answer.score - top) / total }));
}

/** "No answer", where it is allowed, among the answers: first if it wins by the threshold, else where its score puts it. */
export function withNothing(answers, nullScore, { null_allowed, null_threshold }) {
  if (!null_allowed) return answers;
  const confidence = Math.max(0, 1 - answers.reduce((sum, answer) => sum + answer.confidence, 0));
  const better = answers.filter((answer) => answer.score >= nullScore).length;
  const place = nullScore - answers[0].score > null_threshold ? 0 : Math.max(1, better);
  return answers.toSpliced(place, 0, { text: "", start: 0, end: 0, score: nullScore, confidence });
}

function bestFirst(a, b) {
  return b.score - a.score || a.first - b.first || a.last - b.last;
}

/** The least stretch of whole clusters (a character with its combining marks, joined emoji) that holds start … end. */
export function wholeClusters(text, start, end) {
  while (end < text.length && continues(text, end)) end++;
  while (start > 0 && continues(text, start) && !/\p{White_Space}/u.test(text[start - 1])) start--;
  return [start, end];
}

const JOINER = "\u200d", MARK = /[\p{M}\u{1f3fb}-\u{1f3ff}]/u, SYMBOL = /\p{So}/u;

function continues(text, place) {
  if (text[place] < "\u0300") return false;
  if (MARK.test(text[place])) return true;
  if (text[place] === JOINER) return place + 1 < text.length && SYMBOL.test(text[place + 1]);
  return text[place - 1] === JOINER && place > 1 && SYMBOL.test(text[place]);
}
