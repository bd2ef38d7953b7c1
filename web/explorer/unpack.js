// Weights out of the page: base64 → gzip → tensors of float32. pack.py is the other way.

/** The model `name` of the page: {config, tensors}. */
export async function unpackModel(name, { config, tensors }) {
  const bytes = await decompress(fromBase64(document.getElementById(`weights-${name}`).textContent));
  const unpacked = Object.entries(tensors).map(([key, entry]) => [key, unpackTensor(entry, bytes)]);
  return { config, tensors: Object.fromEntries(unpacked) };
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const characters = atob(text), bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

async function decompress(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function unpackTensor({ shape, kind, begin, first }, bytes) {
  const count = shape.reduce((product, size) => product * size, 1);
  return { shape, data: READERS[kind](bytes, begin, count, shape[0], first) };
}

const READERS = { fp32: readFloats, bf16: readHalves, int8: readRows, first: readFirst };

function readFloats(bytes, begin, count) {
  return new Float32Array(bytes.slice(begin, begin + 4 * count).buffer);
}

/** The upper 16 bits of each number: all upper bytes, then all lower ones. */
function readHalves(bytes, begin, count) {
  const bits = new Uint32Array(count);
  for (let i = 0; i < count; i++) bits[i] = (bytes[begin + i] << 24) | (bytes[begin + count + i] << 16);
  return new Float32Array(bits.buffer);
}

/** A scale for each row, then the rows as signed bytes. */
function readRows(bytes, begin, count, rows) {
  const scales = readFloats(bytes, begin, rows), numbers = new Int8Array(bytes.buffer, begin + 4 * rows, count);
  const data = new Float32Array(count), width = count / rows;
  for (let i = 0, row = 0; row < rows; row++) {
    for (const end = i + width; i < end; i++) data[i] = numbers[i] * scales[row];
  }
  return data;
}

/** The first rows as halves, the others as signed bytes. */
function readFirst(bytes, begin, count, rows, first) {
  const halves = (first * count) / rows, data = new Float32Array(count);
  data.set(readHalves(bytes, begin, halves));
  data.set(readRows(bytes, begin + 2 * halves, count - halves, rows - first), halves);
  return data;
}
