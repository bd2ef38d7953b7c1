// 1. Tokens, ids, words.

import { continues, h, plain } from "./dom.js";
import { walkable } from "./linked.js";

/** encoded: as source.encode gives it. */
export function drawTokens(root, encoded) {
  const { tokens, ids, starts, ends, words } = encoded, groups = [], chips = [];
  tokens.forEach((token, index) => {
    const special = words[index] === null;
    if (special || !groups.length || words[index] !== words[index - 1]) groups.push(h("span", { class: special ? "word special" : "word" }));
    const chip = h(
      "span",
      { class: "chip", data: { start: starts[index], end: ends[index], token: index }, title: `token ${index}, id ${ids[index]}` },
      h("span", { class: "chip-text" }, continues(token) ? h("i", {}, "##") : null, plain(token)),
      h("span", { class: "chip-id" }, String(ids[index])),
    );
    groups.at(-1).append(chip);
    chips.push(chip);
  });
  walkable(chips, { at: 1 });
  const count = new Set(words.filter((word) => word !== null)).size, inner = tokens.length - 2;
  root.replaceChildren(
    h("p", { class: "facts" }, `${count} word${count === 1 ? "" : "s"}, ${inner} token${inner === 1 ? "" : "s"}, and [CLS] and [SEP] around them.`),
    h("div", { class: "chips scroll", role: "group", "aria-label": "Tokens with their ids" }, groups),
  );
}
