// What the page shows, all of it in its address, so that a view can be shared by its link.

export const EXAMPLES = [
  {
    name: "Suez Canal",
    text: "The Suez Canal was opened on 17 November 1869, after ten years of work. It was dug by the Suez Canal Company, which the French diplomat Ferdinand de Lesseps had founded in Paris in 1858. The canal joins the Mediterranean Sea to the Red Sea, so that ships need not sail around Africa.",
    question: "When was the canal opened?",
  },
  {
    name: "Harbour clock",
    text: "The old harbour clock of Marrow Bay was built in 1871 by the watchmaker Ines Tallow. It stood on the customs house until the storm of 1904, when the tower fell into the sea. Fishermen found the bell eleven years later, and the town hung it in the new school.",
    question: "Who built the clock?",
  },
  {
    name: "A long text",
    text: "The Suez Canal is an artificial waterway in Egypt that joins the Mediterranean Sea to the Red Sea. It was built by the Suez Canal Company, which the French diplomat Ferdinand de Lesseps founded in 1858. Work began on the shore of the future Port Said in April 1859 and took ten years. The canal was opened on 17 November 1869. It is 193 kilometres long and has no locks, because the two seas lie at nearly the same height.\n\nBefore the canal existed, a ship from London to Mumbai had to sail around Africa. The new route made the journey about 7,000 kilometres shorter. In 1956 the Egyptian president Gamal Abdel Nasser nationalised the company, which led to a short war. After another war in 1967 the canal stayed closed for eight years, and fifteen ships were trapped in the Great Bitter Lake.\n\nIn March 2021 the container ship Ever Given ran aground in a sandstorm and blocked the canal for six days. About four hundred ships had to wait until tugs and a high tide set it free.\n\nOn the shore of Marrow Bay nobody had a ship that was large enough for such a journey. Its people lived on herring, which they salted in barrels and sold to the towns of the north, and they sailed no further than the islands that can be seen from the church on a clear day.\n\nThe old harbour clock of Marrow Bay was built in 1871 by the watchmaker Ines Tallow. It stood on the customs house until the storm of 1904, when the tower fell into the sea. Fishermen found the bell of the clock eleven years later, in 1915, and the town hung it in the new school. The bell weighs 240 kilograms. Every year on the second Sunday of May the children ring it once for each ship that was lost in the storm: nineteen times. The clock itself was never found. A copy, made in Lisbon and paid for by the fishermen, has shown the time on the customs house since 1932.",
    question: "How much does the bell weigh?",
  },
];

const DEFAULTS = {
  text: EXAMPLES[0].text,
  question: EXAMPLES[0].question,
  seed: 35,
  scheme: "geometric",
  own: [],
  layer: 0,
  head: 0,
  token: 1,
  target: null,
  looked: [],
  guesses: [],
  theme: "",
};
const NUMBERS = ["seed", "layer", "head", "token", "target"];
const MOST = { seed: 99 };
const CHOICES = { scheme: ["geometric", "whole_word", "subword", "own"], theme: ["light", "dark"] };

export const state = { ...DEFAULTS };
const listeners = new Set();

export function whenChanged(listener) {
  listeners.add(listener);
}

/** Change the state: listeners hear which fields differ. A change that is a step can be undone by the browser's back button. */
export function change(patch, { step = false } = {}) {
  const changed = Object.keys(patch).filter((key) => JSON.stringify(patch[key]) !== JSON.stringify(state[key]));
  if (!changed.length) return;
  Object.assign(state, patch);
  write(step);
  for (const listener of listeners) listener(new Set(changed));
}

/** The state that the address holds; fields that it lacks or that cannot be are the defaults. */
export function readAddress() {
  const found = { ...DEFAULTS }, parameters = new URLSearchParams(location.hash.slice(1));
  for (const key of ["text", "question"]) if (parameters.has(key)) found[key] = parameters.get(key);
  for (const [key, known] of Object.entries(CHOICES)) if (known.includes(parameters.get(key))) found[key] = parameters.get(key);
  for (const key of NUMBERS) {
    const value = parameters.get(key) ?? "";
    if (/^\d{1,15}$/.test(value) && Number(value) <= (MOST[key] ?? Infinity)) found[key] = Number(value);
  }
  const pairs = (parameters.get("own") ?? "").match(/\d{1,4}-\d{1,4}/g) ?? [];
  found.own = pairs.map((pair) => pair.split("-").map(Number));
  found.looked = ((parameters.get("looked") ?? "").match(/\d{1,4}/g) ?? []).map(Number);
  found.guesses = parameters.getAll("guess").map((one) => one.match(/^(\d{1,4}):(.{1,40})$/su)).filter(Boolean).map((m) => [Number(m[1]), m[2]]);
  return found;
}

export function followAddress() {
  Object.assign(state, readAddress());
  window.addEventListener("hashchange", () => change(readAddress()));
}

function write(step) {
  const parameters = new URLSearchParams();
  for (const key of Object.keys(DEFAULTS)) {
    const value = state[key];
    if (JSON.stringify(value) === JSON.stringify(DEFAULTS[key])) continue;
    if (key === "own") parameters.set(key, value.map((pair) => pair.join("-")).join(","));
    else if (key === "looked") parameters.set(key, value.join(","));
    else if (key === "guesses") for (const [position, word] of value) parameters.append("guess", `${position}:${word}`);
    else if (value !== null) parameters.set(key, value);
  }
  history[step ? "pushState" : "replaceState"](null, "", `#${parameters}`);
}
