// Elements, and nothing about models. Texts are always set as text, so no text of a reader's can become markup.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element; attributes whose values are functions are listeners, and dataset, className and the like are properties. */
export function h(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(key, value);
    else if (key === "data") Object.assign(made.dataset, value);
    else if (key === "class") made.className = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** An SVG element. */
export function s(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) made.setAttribute(key, value);
  made.append(...children.flat());
  return made;
}

/** 0.3824 → "38 %", 0.0041 → "0.41 %": two digits that count. */
export function percent(share) {
  const value = 100 * share;
  if (value >= 10) return `${value.toFixed(0)}\u00a0%`;
  if (value >= 1) return `${value.toFixed(1)}\u00a0%`;
  return value >= 0.01 ? `${value.toFixed(2)}\u00a0%` : "< 0.01\u00a0%";
}

export function number(value) {
  return value.toFixed(2).replace("-", "−");
}

/** A token as it is read: without the "##" of a token that continues a word. */
export function plain(token) {
  return token.startsWith("##") && token.length > 2 ? token.slice(2) : token;
}

export function continues(token) {
  return token.startsWith("##") && token.length > 2;
}

/** Classes of a token among its neighbours: the tokens of a word stand close together. */
export function tokenClass(tokens, index, ...more) {
  const joined = continues(tokens[index]), leads = index + 1 < tokens.length && continues(tokens[index + 1]);
  return ["tok", joined ? "joined" : "", leads ? "leads" : "", ...more].filter(Boolean).join(" ");
}

/** Elements of a row of tokens with spaces between words and none in them, so that no line ends within a word. */
export function spaced(elements) {
  return elements.flatMap((element, index) => (index && !element.classList.contains("joined") ? [" ", element] : [element]));
}

/** What a problem says, and where. */
export function problem(error) {
  return h("p", { class: "problem", role: "alert" }, error.message || String(error));
}

/** The colour of an element as [red, green, blue]. */
export function colourOf(element) {
  return getComputedStyle(element).color.match(/[\d.]+/g).slice(0, 3).map(Number);
}
