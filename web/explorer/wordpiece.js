// BERT's WordPiece: text → clean characters → words → tokens, each token with the code points of the text that it covers.
//
// Special tokens are never found in a text: a literal "[MASK]" in it is "[", "MA", "##S", "##K", "]".
//
// settings: {tokens: [string], lowercase, stripAccents, splitChinese, unknown, longestWord, characters}. characters holds
// three classes of code points, {control, punctuation, accents: [[first, last], …]}, as the Python tokenizer's library has
// them: what a browser's \p{P} or \p{Mn} holds depends on the Unicode version that it was built with.

const CHINESE = /[\u{3400}-\u{4dbf}\u{4e00}-\u{9fff}\u{f900}-\u{faff}\u{20000}-\u{2a6df}\u{2a700}-\u{2b81f}\u{2b920}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/u;
const SPACE = /\p{White_Space}/u;

export class WordPiece {
  constructor(settings) {
    this.settings = settings;
    this.ids = new Map(settings.tokens.map((token, id) => [token, id]));
    this.control = classOf(settings.characters.control);
    this.punctuation = classOf(settings.characters.punctuation);
    this.accents = classOf(settings.characters.accents);
  }

  /** text → {ids, starts, ends, words}: token i covers the code points starts[i] … ends[i] − 1, and is of word words[i]. */
  encode(text) {
    const encoded = { ids: [], starts: [], ends: [], words: [] };
    this.words(this.normalise(text)).forEach((word, number) => {
      for (const { id, first, last } of this.pieces(word)) {
        encoded.ids.push(id);
        encoded.starts.push(word[first].place);
        encoded.ends.push(word[last].place + 1);
        encoded.words.push(number);
      }
    });
    return encoded;
  }

  /** The text's characters as {character, place}, where place is the code point of the text that each came from. */
  normalise(text) {
    const { lowercase, stripAccents, splitChinese } = this.settings;
    let characters = [...text].map((character, place) => ({ character: whole(character), place }));
    characters = each(characters, (c) => this.clean(c));
    if (splitChinese) characters = each(characters, (c) => (CHINESE.test(c) ? [" ", c, " "] : [c]));
    if (stripAccents) characters = each(characters, (c) => [...c.normalize("NFD")].filter((d) => !this.accents.test(d)));
    if (lowercase) characters = each(characters, (c) => [...c.toLowerCase()]);
    return characters;
  }

  /** Control characters vanish; white space of all kinds is a space. */
  clean(character) {
    if (this.control.test(character)) return [];
    return [SPACE.test(character) ? " " : character];
  }

  /** Words are what stands between white space; each punctuation character is a word of its own. */
  words(characters) {
    const words = [];
    let open = null;
    for (const one of characters) {
      if (SPACE.test(one.character)) {
        open = null;
      } else if (this.punctuation.test(one.character)) {
        words.push([one]);
        open = null;
      } else {
        if (open === null) words.push((open = []));
        open.push(one);
      }
    }
    return words;
  }

  /** The longest token that the word begins with, then the longest that goes on, and so on; else one unknown token. */
  pieces(word) {
    const { unknown, longestWord } = this.settings;
    const nothing = [{ id: this.ids.get(unknown), first: 0, last: word.length - 1 }];
    if (word.length > longestWord) return nothing;
    const pieces = [];
    for (let first = 0; first < word.length; first = pieces.at(-1).last + 1) {
      let last = word.length - 1, id;
      for (; last >= first; last--) {
        const part = word.slice(first, last + 1).map((one) => one.character).join("");
        id = this.ids.get(first > 0 ? `##${part}` : part);
        if (id !== undefined) break;
      }
      if (last < first) return nothing;
      pieces.push({ id, first, last });
    }
    return pieces;
  }
}

/** Where each code point of a text begins in the string's UTF-16 units, and its length at the end. */
export function utf16Offsets(text) {
  const offsets = [0];
  for (const character of text) offsets.push(offsets.at(-1) + character.length);
  return offsets;
}

/** Each character becomes none, one or several, all from the same place. */
function each(characters, change) {
  return characters.flatMap(({ character, place }) => change(character).map((made) => ({ character: made, place })));
}

/** Half a surrogate pair is no character: U+FFFD stands for it. */
function whole(character) {
  return /\p{Surrogate}/u.test(character) ? "\ufffd" : character;
}

function classOf(ranges) {
  const parts = ranges.map(([first, last]) => `\\u{${first.toString(16)}}-\\u{${last.toString(16)}}`);
  return new RegExp(`[${parts.join("")}]`, "u");
}
