# %% [markdown]
# # Attention by hand
#
# Is attention really six lines, if the batch has no padding and a GPU never holds the matrix of scores? Six lines of torch against the project's three
# implementations; what padding costs on SQuAD; the online softmax block by block; and the real Triton kernel, on a CPU.
#
# The code: [spanbert/model/attention.py](../spanbert/model/attention.py),
# [kernels/attention_forward_kernel.py](../kernels/attention_forward_kernel.py); the derivation is in [docs/kernels.md](../docs/kernels.md).

# %%
import importlib.util
import inspect
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"  # of the last section alone
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = (
        "1"  # Triton's kernels then run on the CPU; has to be set before triton is imported
    )

import spanbert
from spanbert.checkpoint.model_folder import load_model_and_tokenizer
from spanbert.model.attention import attention
from spanbert.model.batch import pack_sequences
from spanbert.model.models import SpanBertForPretraining
from spanbert.model.packing import position_ids, unpack
from spanbert.weights import bundled_path

torch.set_grad_enabled(False)
ROOT = Path(spanbert.__file__).parents[1]
model, tokenizer, _ = load_model_and_tokenizer(bundled_path("encoder"), SpanBertForPretraining)
encoder = model.eval().encoder

# %% [markdown]
# Three sequences of different lengths, end to end: that is a *packed* batch. `cu_seqlens` says where each begins. There is no padding and no attention mask in the whole
# encoder. The queries, keys and values are those of the trained model's third layer.

# %%
texts = [
    "The canal was opened on 17 November 1869.",
    "It is 193 kilometres long and has no locks, because the two seas lie at nearly the same height.",
    "Before the canal existed, a ship from London to Mumbai had to sail around Africa.",
]
packed = pack_sequences([(tokenizer.encode_ids(text),) for text in texts], tokenizer.cls_id, tokenizer.sep_id).tensors()
cu_seqlens, longest = packed.cu_seqlens, packed.max_seqlen
print(f"{packed.tokens} tokens, cu_seqlens {cu_seqlens.tolist()}")


def layer_input(number):
    """Hidden states (T, H) before layer `number`."""
    x = encoder.embeddings(packed.input_ids_T, position_ids(cu_seqlens, packed.tokens), None, 0)
    for layer in encoder.layers[:number]:
        x = layer(x, cu_seqlens, longest, "eager", 0)
    return x


layer = encoder.layers[2]
q_THD, k_THD, v_THD = layer.qkv(layer_input(2)).view(packed.tokens, 3, layer.heads, -1).unbind(1)
print("q, k, v:", tuple(q_THD.shape), "= tokens, heads, head size")

# %% [markdown]
# ## Six lines


# %%
def attention_by_hand(q, k, v):
    """One head of one sequence: (L, D) → (L, D)."""
    scores = q @ k.T / q.shape[1] ** 0.5
    weights = torch.exp(scores - scores.amax(1, keepdim=True))
    probs = weights / weights.sum(1, keepdim=True)
    return probs @ v


by_hand = torch.empty_like(q_THD)
for begin, end in zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:]):
    for head in range(layer.heads):
        by_hand[begin:end, head] = attention_by_hand(*(x[begin:end, head] for x in (q_THD, k_THD, v_THD)))

# %% [markdown]
# The project's `eager` is this for whole groups of equally long sequences, `sdpa` hands them to PyTorch's fused kernel. Both take the packed batch. And the form in
# which most code has it: padded to the longest, with a mask that sets scores to −∞.

# %%
for backend in ("eager", "sdpa"):
    difference = (attention(q_THD, k_THD, v_THD, cu_seqlens, longest, backend=backend) - by_hand).abs().max().item()
    print(f"{backend}: largest difference {difference:.1e}")
    assert difference < 1e-5

q, k, v = (unpack(x, cu_seqlens, longest).transpose(1, 2) for x in (q_THD, k_THD, v_THD))  # (B, heads, L, D)
is_real = torch.arange(longest) < cu_seqlens.diff()[:, None]
padded = ((q @ k.mT / 8).masked_fill(~is_real[:, None, None], -torch.inf).softmax(-1) @ v).transpose(1, 2)
assert q.shape[-1] == 64
assert torch.allclose(padded[is_real], by_hand, atol=1e-5)
print(f"padded: {is_real.numel()} rows, of which {(~is_real).sum()} are thrown away")

# %% [markdown]
# Nothing crosses from one sequence to another. With other values in the second sequence, the first stays the same to the last bit:

# %%
other = v_THD.clone()
other[cu_seqlens[1] : cu_seqlens[2]] += 100
first = attention(q_THD, k_THD, other, cu_seqlens, longest)[: cu_seqlens[1]]
assert torch.equal(first, attention(q_THD, k_THD, v_THD, cu_seqlens, longest)[: cu_seqlens[1]])

# %%
whole = torch.full((packed.tokens, packed.tokens), torch.nan)
boxes = torch.full((longest, 3 * longest), torch.nan)
for number, (begin, end) in enumerate(zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:])):
    probs = (q_THD[begin:end, 1] @ k_THD[begin:end, 1].T / 8).softmax(-1)
    whole[begin:end, begin:end] = probs
    boxes[: end - begin, number * longest : number * longest + end - begin] = probs
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(2.6, 1))
colours = plt.get_cmap("viridis").with_extremes(bad="#f1dfe9")
for axes, values, title in (
    (left, boxes, "padded: what is pink is computed and thrown away"),
    (right, whole, "packed: only the squares"),
):
    image = axes.imshow(
        values, cmap=colours if axes is left else plt.get_cmap("viridis").with_extremes(bad="white"), vmin=0, vmax=0.5
    )
    axes.grid(False)
    axes.set(xlabel="key (token)", ylabel="query (token)", title=title)
for edge in (longest, 2 * longest):
    left.axvline(edge - 0.5, color="white", linewidth=3)
figure.colorbar(image, ax=right, label="probability")
plt.show()

# %% [markdown]
# ## What padding costs on SQuAD
#
# The lengths of all 88,864 windows of SQuAD 1.1's training set (question and part of a paragraph, at most 384 tokens) are in
# [benchmarks/kernels/squad_windows.json](../benchmarks/kernels/squad_windows.json). A linear layer costs by the token, attention by the pair of tokens.

# %%
recorded = json.loads((ROOT / "benchmarks" / "kernels" / "squad_windows.json").read_text())["windows_of_length"]
lengths = np.repeat([int(length) for length in recorded], list(recorded.values()))
shuffled = np.random.default_rng(0).permutation(lengths)


def in_batches(lengths, size=32):
    """Each window as long as the longest of its batch."""
    batches = lengths[: len(lengths) // size * size].reshape(-1, size)
    return np.broadcast_to(batches.max(1, keepdims=True), batches.shape).ravel()


computed = {
    "padded to 384": np.full_like(lengths, 384),
    "padded to the longest of 32": in_batches(shuffled),
    "the same, sorted by length": in_batches(np.sort(lengths)),
    "packed": lengths,
}
tokens = {name: x.sum() / len(x) / lengths.mean() for name, x in computed.items()}
pairs = {name: np.mean(x.astype(float) ** 2) / np.mean(lengths.astype(float) ** 2) for name, x in computed.items()}
tiles = np.ceil(lengths / 64) * 64
pairs["packed, in tiles of 64 × 64"] = np.mean(tiles**2) / np.mean(lengths.astype(float) ** 2)
for name, value in pairs.items():
    print(f"{name:30}" + (f"tokens × {tokens[name]:.2f}   " if name in tokens else " " * 16) + f"pairs × {value:.2f}")
assert tokens["padded to 384"] > 2.1 and pairs["padded to 384"] > 4
assert pairs["padded to the longest of 32"] > 2.5 and 1.25 < pairs["packed, in tiles of 64 × 64"] < 1.4

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
left.hist(lengths, bins=np.arange(24, 392, 8), color="C0", alpha=0.6)
left.axvline(lengths.mean(), color="C1")
left.text(lengths.mean() + 6, left.get_ylim()[1] * 0.92, f"mean {lengths.mean():.0f}", color="C1")
left.set(xlabel="tokens in a window", ylabel="windows", title="SQuAD 1.1, training set")
names = list(pairs)[::-1]
right.barh(np.arange(5) + 0.2, [tokens.get(name, np.nan) for name in names], 0.35, label="tokens (linear layers)")
right.barh(np.arange(5) - 0.2, [pairs[name] for name in names], 0.35, label="pairs (attention)")
right.axvline(1, color="#1c2330", linewidth=0.8)
right.set_yticks(range(5), names)
right.set(xlabel="computed ÷ needed", title="what is computed")
right.legend(loc="lower right")
plt.show()

# %% [markdown]
# Padded to 384, as the usual SQuAD script does it, more than half of all tokens are padding, and attention computes 4.1 times what it needs. Sorting by length repairs nearly all of
# it, but then a batch is no longer a random draw of the data. Packing needs no sorting. A real kernel works in tiles, and pays for those that a sequence's end cuts: 1.3.
#
# ## The online softmax
#
# The softmax of a row needs the row's maximum and its sum; so it seems that all scores have to be there before the first probability is. They do not. Go over the keys in blocks, and keep three
# things that belong to the keys *seen so far*: the maximum `m`, the sum `total` and the output `acc`. When a block raises the maximum, what was summed is scaled down:


# %%
def online(scores, v, block, rescale=True):
    """One query: yields (m, total, acc) after each block of keys."""
    m, total, acc = torch.tensor(-torch.inf), torch.tensor(0.0), torch.zeros(v.shape[1])
    for start in range(0, len(scores), block):
        s = scores[start : start + block]
        m_new = torch.maximum(m, s.max())
        p = torch.exp(s - m_new)
        scale = torch.exp(m - m_new) if rescale else 1.0
        total = total * scale + p.sum()
        acc = acc * scale + p @ v[start : start + block]
        m = m_new
        yield m, total, acc


begin, end = cu_seqlens[1:3].tolist()
scores_all = q_THD[begin:end, 1] @ k_THD[begin:end, 1].T / 8
values = v_THD[begin:end, 1]
# the query whose maximum rises most often on the way
rises = [(torch.stack([m for m, _, _ in online(s, values, 4)]).diff() > 0).sum().item() for s in scores_all]
row = int(np.argmax(rises))
scores = scores_all[row]
print(f"query: {tokenizer.token(int(packed.input_ids_T[begin + row]))!r}, position {row}")
seen_rows = torch.full((-(-len(scores) // 4), len(scores)), torch.nan)
for number, (m, total, acc) in enumerate(online(scores, values, 4)):
    seen = min(4 * (number + 1), len(scores))
    assert torch.allclose(acc / total, scores[:seen].softmax(0) @ values[:seen], atol=1e-5)
    seen_rows[number, :seen] = torch.exp(scores[:seen] - m) / total
    print(f"after {seen:2} keys: m {m:6.2f}   total {total:5.2f}   acc / total is attention over these keys")

# %% [markdown]
# The assert in the loop is the point: after *every* block, acc / total is exactly what attention over the keys so far would be. The picture shows the probabilities as they stand after each block. A key's share
# can only fall as others come along. Here nearly all of it ends at one key: the query's own token, which comes late. Whatever the blocks before it had shared out is scaled down to little.

# %%
figure, axes = plt.subplots(figsize=(9, 2.9))
image = axes.imshow(seen_rows, cmap=plt.get_cmap("viridis").with_extremes(bad="#f1f3f6"), aspect="auto", vmin=0)
axes.grid(False)
axes.set_xticks(
    range(len(scores)), [tokenizer.token(int(i)) for i in packed.input_ids_T[begin:end]], rotation=90, fontsize=7
)
axes.set(
    xlabel="key", ylabel="after block", title="probabilities as the online softmax has them after each block of 4 keys"
)
axes.set_yticks(range(len(seen_rows)), range(1, len(seen_rows) + 1))
figure.colorbar(image, label="probability")
plt.show()
shares = seen_rows.nan_to_num(2.0)
assert (shares[1:] <= shares[:-1] + 1e-6).all()
assert seen_rows[-1].argmax() == row > len(scores) / 2 and seen_rows[-1, row] > 0.85

# %% [markdown]
# Two ways to get it wrong. Without the rescaling, each block is weighted by the maximum of its time. And without subtracting a maximum at all, large scores overflow: those of
# large models reach thousands.

# %%
exact = (scores.double().softmax(0) @ values.double()).float()
*_, (_, total, acc) = online(scores, values, 4)
*_, (_, total_wrong, acc_wrong) = online(scores, values, 4, rescale=False)
right_error, wrong_error = ((x - exact).norm() / exact.norm() for x in (acc / total, acc_wrong / total_wrong))
print(f"relative error {right_error:.1e}; without rescaling {wrong_error:.2f}")
assert right_error < 1e-5 and wrong_error > 0.4

large = 200 * scores
naive = torch.exp(large) / torch.exp(large).sum()
*_, (_, total, acc) = online(large, values, 4)
print(
    f"scores up to {large.max():.0f}: naive {naive.isnan().sum()} × nan, online {'finite' if (acc / total).isfinite().all() else 'not finite'}"
)
assert naive.isnan().any() and torch.allclose(acc / total, large.softmax(0) @ values, atol=1e-4)

# %% [markdown]
# ## The real kernel
#
# A Triton kernel does this for a tile of queries at once, in base 2 (`exp2` is one instruction). These are the lines of
# [kernels/attention_forward_kernel.py](../kernels/attention_forward_kernel.py) that do what `online` does:

# %%
has_triton = importlib.util.find_spec("triton") is not None
if has_triton:
    from kernels.attention_config import attention_config
    from kernels.attention_forward_kernel import _accumulate

    lines = inspect.getsource(_accumulate.fn).splitlines()
    print(
        "\n".join(
            line for line in lines if line.lstrip().startswith(("m_new =", "p =", "rescale =", "denom =", "acc ="))
        )
    )

# %% [markdown]
# Without a GPU the kernel runs in Triton's interpreter (`TRITON_INTERPRET=1`, set in the first cell): every program one after another, each operation in NumPy. Far too slow for work, right for looking at. Our three sequences are shorter than a block of keys, which would leave the online
# softmax nothing to do; so they get company, a sequence of 101 tokens.

# %%
paragraph = (ROOT / "sample" / "text.txt").read_text(encoding="utf-8").split("\n\n")[0]
packed = pack_sequences(
    [(tokenizer.encode_ids(t),) for t in (*texts, paragraph)], tokenizer.cls_id, tokenizer.sep_id
).tensors()
cu_seqlens, longest = packed.cu_seqlens, packed.max_seqlen
q_THD, k_THD, v_THD = layer.qkv(layer_input(2)).view(packed.tokens, 3, layer.heads, -1).unbind(1)
print("lengths:", cu_seqlens.diff().tolist())
if has_triton:
    block = attention_config(80, q_THD.shape[2], torch.float32, tile=32).forward.block
    print(f"keys in a block: {block}")
    assert longest > 2 * block
    on_device = [x.to(device) for x in (q_THD, k_THD, v_THD, cu_seqlens)]
    out = attention(*on_device, longest, backend="triton").cpu()
    reference = attention(q_THD.double(), k_THD.double(), v_THD.double(), cu_seqlens, longest)
    eager = attention(*on_device, longest).cpu()
    kernel_error, eager_error = ((x - reference).norm() / reference.norm() for x in (out, eager))
    print(f"relative error against float64: kernel {kernel_error:.1e}, eager {eager_error:.1e}")
    assert kernel_error < 2 * eager_error  # the project's rule for a kernel
    assert torch.allclose(out[: len(by_hand)], by_hand, atol=1e-5)
else:
    print("triton is not installed here (it comes for Linux only)")

# %% [markdown]
# ## What to take along
#
# * Attention is `softmax(q kᵀ / √D) v`, within each sequence. Six lines, `eager`, `sdpa`, the padded form and the Triton kernel agree.
# * Packing is not a trick of the kernel. It is the shape of the batch, (T, H), in the whole encoder; only attention has to know where a sequence ends.
# * On SQuAD, padding to 384 more than doubles the work of linear layers and quadruples that of attention.
# * A fused kernel needs no matrix of scores, since maximum, sum and output can be brought up to date block by block.
#
# Next: [what the layers do, one after another](04_layer_by_layer.py).
