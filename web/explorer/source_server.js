// What the views ask of a model, asked of the local server.

const MOST_REMEMBERED = 30;

export class ServerSource {
  constructor() {
    this.remembered = new Map();
  }

  describe() {
    return this.ask("");
  }

  encode(text) {
    return this.ask("/encode", { text });
  }

  masks(text, seed) {
    return this.ask("/masks", { text, seed });
  }

  async run(ids, spans) {
    const { attention, ...found } = await this.ask("/run", { ids, spans });
    return { attention: await unpacked(attention), ...found };
  }

  answer(question, text) {
    return this.ask("/answer", { question, text });
  }

  /** The same question is asked once. Raises Error with what the server's problem document says. */
  async ask(path, body) {
    const key = path + JSON.stringify(body ?? null);
    if (!this.remembered.has(key)) {
      const asked = this.fetched(path, body);
      this.remembered.set(key, asked);
      asked.catch(() => this.remembered.delete(key));
      if (this.remembered.size > MOST_REMEMBERED) this.remembered.delete(this.remembered.keys().next().value);
    }
    return this.remembered.get(key);
  }

  async fetched(path, body) {
    const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    let response;
    try {
      response = await fetch(`v1/explorer${path}`, body === undefined ? {} : post);
    } catch {
      throw new Error("The server does not answer: is `spanbert explore` still running?");
    }
    const content = await response.json();
    if (!response.ok) throw new Error(`${content.title}: ${content.detail}`);
    return content;
  }
}

/** {shape: [layers, heads, n], zlib: base64} → [layer][head] Uint8Array(n · n). */
async function unpacked({ shape: [layers, heads, n], zlib }) {
  const packed = Uint8Array.from(atob(zlib), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const head = (number) => bytes.subarray(number * n * n, (number + 1) * n * n);
  return Array.from({ length: layers }, (_, layer) => Array.from({ length: heads }, (_, of) => head(layer * heads + of)));
}
