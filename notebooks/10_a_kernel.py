# %% [markdown]
# # A kernel: from naive attention to the fused one
#
# Attention's formula is three lines. On a GPU the three lines are slow, and not because of the arithmetic. This
# notebook follows the way from the formula to the project's Triton kernel:
#
# 1. count what the naive way computes and what it *moves*, and put it under an H100's roofline;
# 2. remove the matrix in the middle: the online softmax, by hand;
# 3. run the real kernel, in Triton's interpreter, on a processor;
# 4. read what the compiler made of it, without a GPU.
#
# **No GPU has run these kernels yet.** Where a time of an H100 stands below, it is a prediction and says so. The long
# form is [docs/kernels.md](../docs/kernels.md), the kernel
# [attention_forward_kernel.py](../kernels/attention_forward_kernel.py).

# %%
import os

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: kernels run on the CPU, one program after another

import inspect
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import kernels
import spanbert
from benchmarks.kernels.predictions import ATTENTION_SHARE, COPY_SHARE
from kernels.attention_config import attention_config, tile_size
from kernels.attention_reference import attention_reference
from kernels.cost import H100, Cost, attention_executed_flops, attention_forward_cost
from kernels.device import runs_triton
from kernels.machine_code import REGISTERS, RESERVED_SHARED, SHARED_OF_MULTIPROCESSOR, resident_blocks

torch.set_num_threads(1)
ROOT = Path(spanbert.__file__).parents[1]

# %% [markdown]
# ## 1. What it computes, what it moves
#
# For one head of one sequence of L tokens, q, k and v of shape (L, D):


# %%
def naive(q, k, v):
    """One sequence: (L, H, D) → (L, H, D)."""
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5  # (H, L, L)
    weights = scores.softmax(-1)  # (H, L, L)
    return (weights @ v).transpose(0, 1)


def naive_cost(lengths, heads, head_dim, element=2):
    """The two (L, L) matrices cross the memory four times: scores written and read, weights written and read."""
    fused = attention_forward_cost(lengths, heads, head_dim, element)
    pairs = sum(length * length for length in lengths)
    return Cost(fused.flops, sum(lengths) * heads * 4 * head_dim * element + 4 * pairs * heads * element)


print(inspect.getsource(attention_forward_cost))

# %% [markdown]
# The arithmetic is the same in both: 4 · L² · D a head. The bytes are not. A fused kernel reads q, k and v once and
# writes the output (and one number a row, for the backward pass); what is between stays in registers.
#
# A batch of the base model, 16,384 tokens, 12 heads of 64, in sequences of different lengths:

# %%
HEADS, DIM, TOKENS = 12, 64, 16384
ridge = H100.flops / H100.bandwidth
rows = {}
print(
    f"{H100.name}: {H100.flops / 1e12:.0f} TFLOP/s, {H100.bandwidth / 1e12:.1f} TB/s: {ridge:.0f} FLOPs per byte or starve\n"
)
print("length   GFLOP   naive MB  FLOPs/byte   fused MB  FLOPs/byte   floor µs: naive  fused")
for length in (128, 256, 512, 1024, 2048):
    lengths = [length] * (TOKENS // length)
    by_hand, fused = naive_cost(lengths, HEADS, DIM), attention_forward_cost(lengths, HEADS, DIM)
    rows[length] = by_hand, fused
    print(
        f"{length:6} {fused.flops / 1e9:7.1f} {by_hand.bytes / 1e6:10.0f} {by_hand.flops / by_hand.bytes:11.0f} "
        f"{fused.bytes / 1e6:10.0f} {fused.flops / fused.bytes:11.0f} {H100.seconds(by_hand) * 1e6:17.0f} "
        f"{H100.seconds(fused) * 1e6:6.0f}"
    )
    assert by_hand.flops == fused.flops and by_hand.flops / by_hand.bytes < 2 * DIM / 4 < ridge

# %% [markdown]
# The naive way never gets beyond D/2 = 32 operations a byte, however long the sequences: its bytes grow with L², as its
# operations do. It is bound by memory, always. The fused one's bytes grow with L only.
#
# Under the roofline: a point can be nowhere above the black line. Crosses are **predictions** of the project's kernel:
# the FLOPs that it really executes (tiles at the ends of sequences are padded) at 45 % of the product rate, which is
# what such kernels reach in public measurements, or 85 % of the copy rate, whichever takes longer
# ([benchmarks/kernels/predictions.py](../benchmarks/kernels/predictions.py)).


# %%
def predicted_seconds(lengths):
    tile = tile_size(DIM, torch.bfloat16, sum(lengths), len(lengths))
    config = attention_config(90, DIM, torch.bfloat16, tile)
    blocks = (config.forward.block, config.dq.block, config.dkdv.block)
    executed, _ = attention_executed_flops(lengths, HEADS, DIM, tile, blocks)
    cost = attention_forward_cost(lengths, HEADS, DIM)
    return max(executed / (ATTENTION_SHARE * H100.flops), cost.bytes / (COPY_SHARE * H100.bandwidth))


intensity = np.logspace(0.8, 3.5, 200)
figure, axes = plt.subplots(figsize=(6.8, 4.0))
axes.loglog(
    intensity, np.minimum(H100.flops, intensity * H100.bandwidth) / 1e12, color="black", label="H100's roofline"
)
for (length, (by_hand, fused)), shift in zip(rows.items(), range(len(rows)), strict=True):
    x = by_hand.flops / by_hand.bytes, fused.flops / fused.bytes
    y = [cost.flops / H100.seconds(cost) / 1e12 for cost in (by_hand, fused)]
    prediction = fused.flops / predicted_seconds([length] * (TOKENS // length)) / 1e12
    first = shift == 0
    axes.plot(x[0], y[0], "s", color="C5", label="naive, at best" if first else None)
    axes.plot(x[1], y[1], "o", color="C0", label="fused, at best" if first else None)
    axes.plot(x[1], prediction, "x", color="C0", markersize=8, label="fused, predicted" if first else None)
    axes.annotate(f"{length}", (x[1], y[1]), textcoords="offset points", xytext=(-4, 7), ha="right", fontsize=8)
axes.axvline(ridge, color="C4", linestyle=":", linewidth=1)
axes.text(ridge * 1.05, 25, f"{ridge:.0f} FLOPs/byte", fontsize=8)
axes.set(xlabel="FLOPs per byte of memory traffic", ylabel="TFLOP/s", ylim=(20, 1300))
axes.set_title("Attention forward in bf16, 16,384 tokens in sequences of 128 … 2048")
axes.legend(fontsize=8, loc="lower right")
plt.show()

# %% [markdown]
# The red squares are at 21 to 31 operations a byte: about ten times too few. Fusing moves the work to the right until,
# from sequences of about 512 on, the products are what takes time. Short sequences stay left of the ridge even so: they
# have little arithmetic per token to pay for moving it.
#
# ## 2. The matrix in the middle
#
# To fuse, the softmax must be had without ever holding a whole row: the keys come in blocks, and the row's maximum and
# sum are known only at the end. The trick is to keep three running things, and to *correct* them when a new maximum
# turns up:
#
#     m'   = max(m, max s)                    the maximum so far
#     l'   = l · e^(m − m') + Σ e^(s − m')    the sum so far, relative to it
#     acc' = acc · e^(m − m') + Σ e^(s − m') v


# %%
def online(q, k, v, block):
    """One query: (D,), (L, D), (L, D) → (D,) and the history of (m, l)."""
    m, total, acc, history = -np.inf, 0.0, np.zeros(v.shape[1]), []
    for start in range(0, len(k), block):
        s = k[start : start + block] @ q * len(q) ** -0.5
        new = max(m, s.max())
        p = np.exp(s - new)
        total = total * np.exp(m - new) + p.sum()
        acc = acc * np.exp(m - new) + p @ v[start : start + block]
        m = new
        history.append((m, total))
    return acc / total, np.array(history)


random = np.random.default_rng(5)
k, v, q = random.normal(size=(96, 16)), random.normal(size=(96, 16)), 2 * random.normal(size=16)
scores = k @ q * 16**-0.5
whole = np.exp(scores - scores.max())
whole = whole / whole.sum() @ v
for block in (1, 7, 32, 96):
    assert np.allclose(online(q, k, v, block)[0], whole)

_, history = online(q, k, v, 8)
ends = np.arange(8, 97, 8)
figure, (top, bottom) = plt.subplots(2, 1, figsize=(6.8, 4.0), sharex=True)
top.plot(range(96), scores, ".", color="C4", label="scores of the keys")
top.step(ends, history[:, 0], where="post", color="C0", label="m, running maximum")
top.set(ylabel="score", ylim=(-7, 5))
top.legend(fontsize=8, loc="lower right", ncols=2)
bottom.step(ends, history[:, 1], where="post", color="C1", label="l, sum relative to m")
bottom.plot(
    ends,
    history[:, 1] * np.exp(history[:, 0] - history[-1, 0]),
    "o--",
    color="C2",
    label="the same, relative to the last m",
)
bottom.set(xlabel="keys seen", ylabel="sum", ylim=(0, None))
bottom.legend(fontsize=8, loc="lower right")
plt.show()

# %% [markdown]
# When the maximum rises, the sum *falls*: everything so far is worth less by e^(m − m'). In a common measure (dashed)
# it only grows. The result does not depend on the size of the blocks, up to rounding; nothing is computed twice.
#
# In the kernel these are the lines of `_accumulate`. It computes with 2^x in place of e^x, since that is one
# instruction:

# %%
source = (ROOT / "kernels/attention_forward_kernel.py").read_text("utf-8")
body = source[source.index("    m_new = ") : source.index("    return acc, m_new, denom")]
print(body)
for line in (
    "tl.maximum(m, tl.max(s, 1) * scale_log2)",
    "denom * rescale + tl.sum(p, 1)",
    "acc = acc * rescale[:, None]",
):
    assert line in body

# %% [markdown]
# ## 3. The kernel itself
#
# Without a GPU, Triton can *interpret* a kernel: every program of the grid is run in Python with NumPy arrays for its
# tiles. Slow, but it is the kernel's source that runs. Two sequences, 19 and 45 tokens, end to end in one packed batch:

# %%
torch.manual_seed(0)
cu_seqlens = torch.tensor([0, 19, 64], dtype=torch.int32)
q, k, v = torch.randn(3, 64, 2, 32)
assert runs_triton(q)  # the kernel, not its reference in PyTorch
out = kernels.attention_varlen(q, k, v, cu_seqlens, max_seqlen=45)

by_hand = torch.cat([naive(q[a:b], k[a:b], v[a:b]) for a, b in ((0, 19), (19, 64))])
exact = attention_reference(q.double(), k.double(), v.double(), cu_seqlens, 32**-0.5)
error = {name: float((x - exact).norm() / exact.norm()) for name, x in (("kernel", out), ("naive", by_hand))}
print({name: f"{e:.1e}" for name, e in error.items()}, "relative error against float64")
assert torch.allclose(out, by_hand, atol=1e-5)
assert error["kernel"] < 2 * error["naive"] + torch.finfo(torch.float32).eps / 4

# %% [markdown]
# That is also the rule by which the tests judge: at most twice the error of plain PyTorch in the same type, against
# float64.
#
# Which program did what? The host does not know the lengths; a table of *tiles*, longest sequences first, says it to
# the programs. Unused slots are zeros.

# %%
plan = kernels.attention_plan(cu_seqlens, 64, 32, torch.float32)
print(f"tiles of {plan.tile} rows: first row, end, first key, end")
print(plan.tiles.numpy())
used = plan.tiles[plan.tiles[:, 1] > plan.tiles[:, 0]]
assert sorted(row for a, b, *_ in used.tolist() for row in range(a, b)) == list(range(64))  # every row once

# %% [markdown]
# ## 4. What the compiler says
#
# Times need a GPU; the compiler does not. `python -m kernels.aot` compiles every kernel that can be selected for Ampere
# (sm_80) and Hopper (sm_90) and reads the machine code. Its table is in the repository:

# %%
record = json.loads((ROOT / "docs/kernels_aot.json").read_text("utf-8"))
table = {row["label"]: row["3.6"] for row in record["rows"] if "3.6" in row}
names = [
    f"attention {kind} D64 {shape} bf16 sm_90" for kind in ("forward", "dq", "dkdv") for shape in ("64x64", "128x64")
]
print(f"{len(table)} kernels, {sum(code['local_accesses'] > 0 for code in table.values())} of them spill registers\n")
print(f"{'':40} registers  spills  shared KB  programs  of a pass")
for name in names:
    code = table[name]
    print(
        f"{name:40} {code['registers']:9} {code['local_accesses']:7} {code['shared_bytes'] / 1024:10.1f} "
        f"{code['blocks']:9} {code['loop']:10}"
    )
assert all(code["local_accesses"] == 0 and code["hgmma"] > 0 for code in map(table.get, names))

# %% [markdown]
# How to read it:
#
# * **registers** a thread. There are 65,536 on a multiprocessor and at most 255 a thread. What does not fit is
#   *spilled* to slow memory: the disaster to look for, and there is none.
# * **shared KB**: the tiles of q, k and v on their way to the matrix units; a Hopper multiprocessor has 228 KB.
# * **programs** that a multiprocessor holds at once. While one waits for memory, another can compute: 1 means that
#   nobody fills the gaps.
# * **of a pass**: instructions of the inner loop.
#
# The number of programs follows from the first two. By hand, for the forward kernel with 128 × 64 blocks and its 8
# warps of 32 threads:

# %%
code = table["attention forward D64 128x64 bf16 sm_90"]
warps = 8
by_registers = REGISTERS // (-(-code["registers"] * 32 // 256) * 256) // 4 * 4 // warps  # handed out in units of 256
by_shared = SHARED_OF_MULTIPROCESSOR[90] // (code["shared_bytes"] + RESERVED_SHARED)
print(f"registers allow {by_registers} programs, shared memory {by_shared}; the table says {code['blocks']}")
assert (
    min(by_registers, by_shared)
    == code["blocks"]
    == resident_blocks(code["registers"], code["shared_bytes"], warps, 90)
)

figure, axes = plt.subplots(figsize=(6.8, 3.2))
registers = np.arange(32, 256)
for warps, color in ((4, "C0"), (8, "C1")):
    axes.step(
        registers,
        [resident_blocks(int(r), 49 * 1024, warps, 90) for r in registers],
        color=color,
        label=f"{warps} warps a program",
    )
for name in names:
    code = table[name]
    warps = attention_config(90, 64, torch.bfloat16, int(name.split()[3].split("x")[0])).forward.num_warps
    axes.plot(code["registers"], code["blocks"], "o", color="C0" if warps == 4 else "C1")
    axes.annotate(
        name.split()[1],
        (code["registers"], code["blocks"]),
        textcoords="offset points",
        xytext=(3, 5) if "dq" not in name else (0, -12),
        fontsize=8,
    )
axes.set(xlabel="registers a thread", ylabel="programs on a multiprocessor", ylim=(0, 5.5))
axes.set_title("Lines: what registers allow beside 49 KB of shared memory. Dots: the kernels")
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# The picture explains a choice: with 128 rows a tile the forward kernel must stay below 128 registers a thread to be
# there twice. It has 111. The backward kernel dK/dV needs more than 200, for it holds two accumulators, and there is
# one of it.
#
# ## What to remember
#
# * Naive attention is slow because it *moves* two L × L matrices; its FLOPs are the same as the fused kernel's.
# * The online softmax makes fusing possible: three running values, corrected when the maximum rises.
# * An interpreter proves that a kernel computes the right thing, and a compiler shows what it will run as. Neither
#   knows the time: the crosses above are predictions until `make gpu` has run.
#
# Write the recurrence yourself: [exercises/online_softmax.py](../exercises/online_softmax.py).
