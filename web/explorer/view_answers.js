// 6. The answer and its runners-up: what each score is made of, and why one won.

import { h, number, percent } from "./dom.js";
import { partsOf } from "./qa_scores.js";

export function drawAnswers(root, found) {
  const answers = found.answers.slice(0, 6);
  root.replaceChildren(
    h("p", { class: "why" }, why(found)),
    h("ol", { class: "answers" }, answers.map((answer, rank) => row(answer, rank, found))),
    h("p", { class: "soft" }, "Share is the softmax of the scores over the model's best candidates: how far an answer is ahead of the others, not how often such an answer is right."),
  );
}

function why(found) {
  const [winner, next] = found.answers;
  if (!winner.text) {
    const best = found.answers.find(({ text }) => text);
    return [h("b", {}, "No answer"), ` won: its null score ${number(found.nullScore)} exceeds the best answer's ${number(best.score)} (“${best.text}”) by more than the threshold ${number(found.nullThreshold ?? 0)}.`];
  }
  const { first, last, start, end } = partsOf(winner, found);
  const ahead = next ? ` It is ${number(winner.score - next.score)} ahead of ${next.text ? `“${next.text}”` : "no answer"}.` : "";
  return ["“", h("b", { data: { start: winner.start, end: winner.end } }, winner.text), `” won because its start logit ${number(start)} at “${found.tokens[first]}” and its end logit ${number(end)} at “${found.tokens[last]}” add up to ${number(winner.score)}, the highest sum of all pairs.${ahead}`];
}

function row(answer, rank, found) {
  const fill = h("span", { class: "fill" });
  fill.style.width = `${Math.max(0.5, 100 * answer.confidence)}%`;
  const made = answer.text ? sum(partsOf(answer, found)) : "start and end logit of [CLS]";
  const place = answer.text ? { data: { start: answer.start, end: answer.end }, tabindex: "0" } : {};
  return h("li", { class: rank ? "" : "winner" }, h("span", { class: "answer-text", ...place }, answer.text || "no answer"), h("span", { class: "sum" }, h("span", { class: "soft" }, `${made} = `), h("b", {}, number(answer.score))), h("span", { class: "track" }, fill), h("span", { class: "p" }, percent(answer.confidence)));
}

function sum({ start, end }) {
  return `${number(start)} ${end < 0 ? "−" : "+"} ${number(Math.abs(end))}`;
}
