// The forward pass of SpanBERT, from token ids to log-probabilities and logits: one function a step, each beside its
// equation. A matrix is a Float32Array, row after row; n is the number of tokens, H the width of the model.
//
// A model is {config, tensors}: config with the keys of config.json, tensors under the names that Hugging Face's BERT
// gives them, each {shape, data}. A weight matrix is (outputs, inputs), as in PyTorch.

/** y = x Wᵀ + b: x (n, K), W (M, K), b (M) → (n, M).
 *
 * Two rows of x meet four rows of W at a time, so that each number read is used four times or twice. At the edges the
 * last row is taken again in the place of those that are missing. */
export function linear(x, n, weight, bias) {
  const [M, K] = weight.shape, W = weight.data, b = bias.data, y = new Float32Array(n * M);
  for (let m = 0; m < M; m += 4) {
    const m1 = Math.min(m + 1, M - 1), m2 = Math.min(m + 2, M - 1), m3 = Math.min(m + 3, M - 1);
    const w0 = m * K, w1 = m1 * K, w2 = m2 * K, w3 = m3 * K;
    for (let t = 0; t < n; t += 2) {
      const u = Math.min(t + 1, n - 1), xt = t * K, xu = u * K;
      let t0 = 0, t1 = 0, t2 = 0, t3 = 0, u0 = 0, u1 = 0, u2 = 0, u3 = 0;
      for (let k = 0; k < K; k++) {
        const a = x[xt + k], c = x[xu + k], d0 = W[w0 + k], d1 = W[w1 + k], d2 = W[w2 + k], d3 = W[w3 + k];
        t0 += a * d0; t1 += a * d1; t2 += a * d2; t3 += a * d3;
        u0 += c * d0; u1 += c * d1; u2 += c * d2; u3 += c * d3;
      }
      y[t * M + m] = t0 + b[m]; y[t * M + m1] = t1 + b[m1]; y[t * M + m2] = t2 + b[m2]; y[t * M + m3] = t3 + b[m3];
      y[u * M + m] = u0 + b[m]; y[u * M + m1] = u1 + b[m1]; y[u * M + m2] = u2 + b[m2]; y[u * M + m3] = u3 + b[m3];
    }
  }
  return y;
}

/** erf(z) = 2/√π · e^(−z²) · Σ_k 2^k z^(2k+1) / (1·3·5 … (2k+1)). Beyond 4 it is ±1 to the precision of a float32. */
export function erf(z) {
  if (Math.abs(z) > 4) return Math.sign(z);
  const step = 2 * z * z;
  let term = z, sum = z;
  for (let odd = 3; Math.abs(term) > 1e-10 * Math.abs(sum); odd += 2) {
    term *= step / odd;
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-z * z) * sum;
}

/** GELU(x) = x Φ(x) = x/2 · (1 + erf(x/√2)), the exact form, in place. */
export function gelu(x) {
  for (let i = 0; i < x.length; i++) x[i] = 0.5 * x[i] * (1 + erf(x[i] * Math.SQRT1_2));
  return x;
}

/** y = (x − mean) / √(variance + ε) · w + b for each of n rows, in place. */
export function layerNorm(x, n, weight, bias, epsilon) {
  const H = x.length / n, w = weight.data, b = bias.data;
  for (let t = 0; t < n; t++) {
    const row = t * H;
    let mean = 0, variance = 0;
    for (let i = 0; i < H; i++) mean += x[row + i] / H;
    for (let i = 0; i < H; i++) variance += (x[row + i] - mean) ** 2 / H;
    const scale = 1 / Math.sqrt(variance + epsilon);
    for (let i = 0; i < H; i++) x[row + i] = (x[row + i] - mean) * scale * w[i] + b[i];
  }
  return x;
}

/** softmax(x)_i = e^(x_i − max x) / Σ_j e^(x_j − max x), in place, over the `length` numbers from `begin` on. */
export function softmax(x, begin, length) {
  let top = -Infinity, sum = 0;
  for (let i = begin; i < begin + length; i++) top = Math.max(top, x[i]);
  for (let i = begin; i < begin + length; i++) sum += x[i] = Math.exp(x[i] - top);
  for (let i = begin; i < begin + length; i++) x[i] /= sum;
}

/** log softmax(x)_i = x_i − log Σ_j e^(x_j) for each of n rows, in place. */
export function logSoftmax(x, n) {
  const V = x.length / n;
  for (let t = 0; t < n; t++) {
    let top = -Infinity, sum = 0;
    for (let i = t * V; i < (t + 1) * V; i++) top = Math.max(top, x[i]);
    for (let i = t * V; i < (t + 1) * V; i++) sum += Math.exp(x[i] - top);
    const total = top + Math.log(sum);
    for (let i = t * V; i < (t + 1) * V; i++) x[i] -= total;
  }
  return x;
}

/** x_t = LayerNorm(word[id_t] + position[t] + type[segment_t]): ids and segments (n) → (n, H). */
export function embed(model, ids, segments) {
  const { tensors, config } = model, H = config.hidden_size, n = ids.length;
  const [word, position, type] = ["word", "position", "token_type"].map(
    (name) => tensors[`bert.embeddings.${name}_embeddings.weight`].data,
  );
  const x = new Float32Array(n * H);
  for (let t = 0; t < n; t++) {
    const w = ids[t] * H, p = t * H, s = segments[t] * H;
    for (let i = 0; i < H; i++) x[p + i] = word[w + i] + position[p + i] + type[s + i];
  }
  return norm(model, "bert.embeddings.LayerNorm", x, n);
}

/** For each head: A = softmax(Q Kᵀ / √D), context = A V. q, k, v (n, H) → context (n, H) and for each head A (n, n). */
export function attention(q, k, v, n, heads) {
  const H = q.length / n, D = H / heads, scale = 1 / Math.sqrt(D);
  const context = new Float32Array(n * H), maps = [];
  for (let head = 0; head < heads; head++) {
    const A = new Float32Array(n * n), first = head * D;
    for (let t = 0; t < n; t++) {
      const qt = t * H + first, row = t * n;
      for (let s = 0; s < n; s++) {
        const ks = s * H + first;
        let dot = 0;
        for (let i = 0; i < D; i++) dot += q[qt + i] * k[ks + i];
        A[row + s] = dot * scale;
      }
      softmax(A, row, n);
      for (let s = 0; s < n; s++) {
        const a = A[row + s], vs = s * H + first;
        for (let i = 0; i < D; i++) context[qt + i] += a * v[vs + i];
      }
    }
    maps.push(A);
  }
  return { context, maps };
}

/** One layer: x ← LayerNorm(x + attention(x) Wo + bo), then x ← LayerNorm(x + GELU(x W1 + b1) W2 + b2). */
export function layer(model, number, x, n) {
  const name = `bert.encoder.layer.${number}`;
  const [q, k, v] = ["query", "key", "value"].map((part) => dense(model, `${name}.attention.self.${part}`, x, n));
  const { context, maps } = attention(q, k, v, n, model.config.num_attention_heads);
  const attended = add(x, dense(model, `${name}.attention.output.dense`, context, n));
  x = norm(model, `${name}.attention.output.LayerNorm`, attended, n);
  const wide = gelu(dense(model, `${name}.intermediate.dense`, x, n));
  const narrow = add(x, dense(model, `${name}.output.dense`, wide, n));
  return { x: norm(model, `${name}.output.LayerNorm`, narrow, n), maps };
}

/** All layers: ids and segments (n) → hidden states (n, H), and attention[layer][head] (n, n). */
export function encode(model, ids, segments = new Uint8Array(ids.length)) {
  let x = embed(model, ids, segments);
  const maps = [];
  for (let number = 0; number < model.config.num_hidden_layers; number++) {
    const done = layer(model, number, x, ids.length);
    x = done.x;
    maps.push(done.maps);
  }
  return { hidden: x, attention: maps };
}

/** MLM: log softmax(LayerNorm(GELU(x W + b)) Eᵀ + bias) for the tokens at `positions` → (positions, V). */
export function mlmLogProbs(model, hidden, positions) {
  const n = positions.length, head = "cls.predictions";
  const x = gelu(dense(model, `${head}.transform.dense`, rows(hidden, positions, model.config.hidden_size), n));
  const features = norm(model, `${head}.transform.LayerNorm`, x, n);
  return logSoftmax(vocabularyLogits(model, features, n, `${head}.bias`), n);
}

/** SBO: h0 = [x_left ; x_right ; p_offset], h1 = LN(GELU(W1 h0)), y = LN(GELU(W2 h1)), log softmax(y Eᵀ + bias).
 *
 * targets: for each its {left, right, offset}: the visible tokens beside its span and its place in it, from 0. → (targets, V) */
export function sboLogProbs(model, hidden, targets) {
  const { config, tensors } = model, H = config.hidden_size, n = targets.length;
  const head = "cls.pair_target_predictions", mlp = `${head}.mlp_layer_norm`;
  const table = tensors[`${head}.position_embeddings.weight`], P = table.shape[1];
  const h0 = new Float32Array(n * (2 * H + P));
  targets.forEach(({ left, right, offset }, t) => {
    h0.set(hidden.subarray(left * H, (left + 1) * H), t * (2 * H + P));
    h0.set(hidden.subarray(right * H, (right + 1) * H), t * (2 * H + P) + H);
    h0.set(table.data.subarray(offset * P, (offset + 1) * P), t * (2 * H + P) + 2 * H);
  });
  const h1 = norm(model, `${mlp}.layer_norm1`, gelu(dense(model, `${mlp}.linear1`, h0, n)), n);
  const y = norm(model, `${mlp}.layer_norm2`, gelu(dense(model, `${mlp}.linear2`, h1, n)), n);
  return logSoftmax(vocabularyLogits(model, y, n, `${head}.bias`), n);
}

/** Question answering: a start and an end logit for each token, (start, end) = x W + b. */
export function answerLogits(model, hidden) {
  const n = hidden.length / model.config.hidden_size;
  const logits = dense(model, "qa_outputs", hidden, n);
  return {
    start: Float32Array.from({ length: n }, (_, t) => logits[2 * t]),
    end: Float32Array.from({ length: n }, (_, t) => logits[2 * t + 1]),
  };
}

function dense(model, name, x, n) {
  return linear(x, n, model.tensors[`${name}.weight`], model.tensors[`${name}.bias`]);
}

function norm(model, name, x, n) {
  const { tensors, config } = model;
  return layerNorm(x, n, tensors[`${name}.weight`], tensors[`${name}.bias`], config.layer_norm_eps);
}

/** Both heads over the vocabulary multiply with the word embeddings E, each with a bias of its own. */
function vocabularyLogits(model, features, n, bias) {
  return linear(features, n, model.tensors["bert.embeddings.word_embeddings.weight"], model.tensors[bias]);
}

function add(x, y) {
  for (let i = 0; i < x.length; i++) y[i] += x[i];
  return y;
}

function rows(x, chosen, H) {
  const taken = new Float32Array(chosen.length * H);
  chosen.forEach((row, t) => taken.set(x.subarray(row * H, (row + 1) * H), t * H));
  return taken;
}
