// 3. Attention: all heads as small pictures, one of them large, and its rows on the text.

import { colourOf, h, percent, plain, spaced, tokenClass } from "./dom.js";
import { light, lit, matches, walkable, whenLit } from "./linked.js";

const LARGE = 480; // pixels of the large picture, before the screen's own

export class AttentionView {
  constructor(root, { state, change }) {
    this.root = root;
    this.state = state;
    this.change = change;
    this.run = null;
    whenLit((place) => this.follow(place));
  }

  /** block: the encoded tokens; run: as source.run gives it; masked: which tokens are behind [MASK]. */
  draw(block, run, masked) {
    Object.assign(this, { block, run, masked, n: block.tokens.length });
    const { attention } = run;
    this.layer = Math.min(this.state.layer, attention.length - 1);
    this.head = Math.min(this.state.head, attention[0].length - 1);
    this.row = Math.min(this.state.token, this.n - 1);
    this.small = attention.map((heads, layer) => heads.map((bytes, head) => this.thumbnail(bytes, layer, head)));
    const buttons = this.small.flat();
    walkable(buttons, { at: this.layer * attention[0].length + this.head });
    this.large = h("canvas", { class: "large", width: LARGE, height: LARGE, role: "img", "aria-label": "Attention of the chosen head: rows look, columns are looked at" });
    this.large.addEventListener("pointermove", (event) => this.point(event));
    this.large.addEventListener("pointerleave", () => light(null));
    this.caption = h("p", { class: "soft caption" });
    this.tokens = block.tokens.map((token, index) => this.token(token, index));
    walkable(this.tokens, { at: this.row, moved: (index) => this.choose(index) });
    this.looks = h("p", { class: "looks", "aria-live": "off" });
    const grid = h("div", { class: "thumbnails" }, this.small.map((heads, layer) => h("div", { class: "layer" }, h("span", { class: "soft" }, `layer ${layer + 1}`), h("div", { class: "heads" }, heads))));
    const text = h("div", { class: "row-text" }, this.looks, h("div", { class: "line", data: { view: "attention" }, role: "group", "aria-label": "Tokens: choose whose row is shown" }, spaced(this.tokens)));
    this.root.replaceChildren(h("div", { class: "attention" }, grid, h("div", { class: "picture" }, this.large, this.caption), text));
    this.paint();
  }

  thumbnail(bytes, layer, head) {
    const canvas = h("canvas", { width: this.n, height: this.n });
    const name = `layer ${layer + 1}, head ${head + 1}`;
    const button = h("button", { type: "button", class: "thumbnail", title: name, "aria-label": name, data: { layer, head } }, canvas);
    button.addEventListener("click", () => this.select(layer, head));
    button.addEventListener("focus", () => button.matches(":focus-visible") && this.select(layer, head));
    button.bytes = bytes;
    button.canvas = canvas;
    return button;
  }

  select(layer, head) {
    this.layer = layer;
    this.head = head;
    this.change({ layer, head });
    this.paintLarge();
  }

  token(token, index) {
    const { starts, ends } = this.block, kind = this.masked.has(index) ? "masked" : "";
    return h("span", { class: tokenClass(this.block.tokens, index, kind), title: kind ? "the model sees [MASK] here" : null, data: { start: starts[index], end: ends[index], token: index }, click: () => this.choose(index) }, plain(token));
  }

  choose(index) {
    this.row = index;
    this.change({ token: index });
    this.paintLarge();
  }

  /** A token lit in another view: its row is shown. */
  follow(place) {
    if (!this.run) return;
    const { tokens, starts, ends } = this.block;
    this.over = place ? tokens.map((_, index) => ({ start: starts[index], end: ends[index], token: index })).findIndex((one) => matches(one, place)) : -1;
    if (place && place.token !== undefined && place.token < this.n) this.over = place.token;
    this.paintLarge();
  }

  point(event) {
    const box = this.large.getBoundingClientRect(), row = Math.floor(((event.clientY - box.top) / box.height) * this.n);
    if (row < 0 || row >= this.n) return;
    light({ start: this.block.starts[row], end: this.block.ends[row], token: row });
  }

  paint() {
    for (const button of this.small.flat()) paintBytes(button.canvas, button.bytes, this.n, colourOf(button));
    this.over = -1;
    if (lit()) this.follow(lit());
    this.paintLarge();
  }

  paintLarge() {
    const { n, large } = this, bytes = this.run.attention[this.layer][this.head];
    const shown = this.over >= 0 ? this.over : this.row;
    for (const button of this.small.flat()) button.setAttribute("aria-pressed", String(Number(button.dataset.layer) === this.layer && Number(button.dataset.head) === this.head));
    const base = paintBytes(h("canvas", { width: n, height: n }), bytes, n, colourOf(large));
    const context = large.getContext("2d"), cell = LARGE / n;
    context.clearRect(0, 0, LARGE, LARGE);
    context.imageSmoothingEnabled = false;
    context.drawImage(base, 0, 0, LARGE, LARGE);
    context.strokeStyle = getComputedStyle(this.caption).getPropertyValue("outline-color");
    context.lineWidth = 2;
    context.strokeRect(1, shown * cell, LARGE - 2, Math.max(3, cell));
    this.caption.textContent = `Layer ${this.layer + 1}, head ${this.head + 1}: each row is a token that looks, each column a token that is looked at. Underlined tokens are behind [MASK].`;
    this.paintRow(bytes, shown);
  }

  paintRow(bytes, shown) {
    const row = bytes.subarray(shown * this.n, (shown + 1) * this.n), top = Math.max(...row, 1);
    this.tokens.forEach((element, index) => {
      element.style.setProperty("--weight", `${Math.round((100 * row[index]) / top) * 0.75}%`);
      element.classList.toggle("looking", index === shown);
      element.dataset.share = (row[index] / 255).toFixed(4);
    });
    const best = Array.from(row, (share, index) => [share, index]).sort((one, other) => other[0] - one[0]).slice(0, 4).filter(([share]) => share > 0);
    const name = (index) => (this.masked.has(index) ? `[MASK] for ${plain(this.block.tokens[index])}` : plain(this.block.tokens[index]));
    this.looks.replaceChildren(h("b", {}, name(shown)), " looks at ", ...best.flatMap(([share, index], place) => [place ? ", " : "", h("b", {}, name(index)), ` ${percent(share / 255)}`]));
  }
}

/** Shares in 255ths as a picture: the more, the stronger; the square root lets small shares be seen. */
function paintBytes(canvas, bytes, n, [red, green, blue]) {
  const context = canvas.getContext("2d"), image = context.createImageData(n, n);
  for (let place = 0; place < n * n; place++) image.data.set([red, green, blue, Math.round(Math.sqrt(bytes[place] / 255) * 255)], 4 * place);
  context.putImageData(image, 0, 0);
  return canvas;
}
