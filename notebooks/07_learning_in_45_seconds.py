# %% [markdown]
# # Learning in 45 seconds
#
# What happens in the first minutes of pretraining? On a processor that is all the time there is, so it pays to look
# closely. The loss falls, then it stands still, and small models are often left there: on the *plateau*. We train a
# tiny SpanBERT four times, live, and ask
#
# 1. what a model can learn by counting alone, and whether it has to be *trained* for that;
# 2. what it waits for on the plateau;
# 3. why short sequences end the wait sooner.
#
# The model is of toy size (2 layers, width 64, 1,000 tokens) so that four runs fit in 45 seconds of one core. The code
# that the real `spanbert init` uses is [pretrain/init_from_counts.py](../pretrain/init_from_counts.py); the same story
# at a hundred times the length is told in [docs/decisions.md](../docs/decisions.md), under "Leaving the plateau".

# %%
import lzma
import time
from pathlib import Path
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import torch

import spanbert
import spanbert.model.encoder
from pretrain.data.train_tokenizer import train_wordpiece
from pretrain.init_from_counts import count_neighbours, factorise, mutual_information, sinusoids
from pretrain.masking.masker import MaskConfig, Masker
from spanbert.model.batch import pack_sequences
from spanbert.model.config import EncoderConfig
from spanbert.model.encoder import count_parameters
from spanbert.model.models import SpanBertForPretraining

torch.set_num_threads(1)
ROOT = Path(spanbert.__file__).parents[1]
articles = lzma.decompress((ROOT / "sample/wikipedia.txt.xz").read_bytes()).decode().split("\n\n")
tokenizer = train_wordpiece(articles, 1000)
documents = [encoded.ids for encoded in tokenizer.encode_batch(articles)]
held_out, training = documents[::15], [ids for i, ids in enumerate(documents) if i % 15]
print(f"{sum(map(len, training)):,} tokens to learn from, {len(held_out)} articles held out")

# %% [markdown]
# ## What counting knows
#
# The simplest language model predicts every masked token by how frequent it is in the corpus: the **unigram baseline**.
# A network that ends above this line has learned nothing that a table of counts does not know.

# %%
counts_V = np.bincount(np.concatenate(training), minlength=tokenizer.vocab_size)
log_frequency_V = np.log((counts_V + 1) / (counts_V.sum() + len(counts_V)))
entropy = -(np.exp(log_frequency_V) * log_frequency_V).sum()
common = sorted(range(tokenizer.vocab_size), key=lambda i: -counts_V[i])[:10]
print(f"unigram: {entropy:.2f} nats; any of {tokenizer.vocab_size:,} tokens alike: {np.log(tokenizer.vocab_size):.2f}")
print("most frequent:", *(tokenizer.token(i) for i in common))

# %% [markdown]
# Two things can be written into the model before its first step. The **output biases** become the tokens'
# log-frequencies. And the **embeddings** become a factorisation of which tokens keep company more often than chance has
# it (positive mutual information of neighbours). Positions begin as sinusoids instead of noise.

# %%
WIDTH, PLACES = 64, 256
shape = EncoderConfig(
    vocab_size=tokenizer.vocab_size,
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=4 * WIDTH,
    max_position_embeddings=PLACES,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    sbo_position_size=WIDTH,
)
flat_ids, article_T = np.concatenate(training), np.repeat(np.arange(len(training)), [len(ids) for ids in training])
ppmi_VV = mutual_information(*count_neighbours(flat_ids, article_T, tokenizer, 5), tokenizer.vocab_size)
words_VH = factorise(ppmi_VV, WIDTH, std=0.1, seed=0)


def new_model(from_counts):
    torch.manual_seed(0)
    model = SpanBertForPretraining(shape, "sdpa")
    if from_counts:
        with torch.no_grad():
            for head in (model.mlm, model.sbo):
                head.bias.copy_(torch.from_numpy(log_frequency_V))
            model.encoder.embeddings.word.weight.copy_(words_VH)
            model.encoder.embeddings.position.weight.copy_(0.1 * sinusoids(PLACES, WIDTH))
    return model


print(f"{count_parameters(new_model(False)):,} parameters")
unit_VH = words_VH / words_VH.norm(dim=1, keepdim=True)
for word in ("he", "his", "can", "in"):
    near = (unit_VH @ unit_VH[tokenizer.id(word)]).topk(7).indices.tolist()[1:]
    print(f"{word:6} is near", *(tokenizer.token(i) for i in near))

# %% [markdown]
# Not a single step of training yet, and the vectors already know that "his" is a sort of "their", and "can" of "may".
#
# ## Four runs
#
# Everything is the same in the four: 320 steps of about 768 tokens, AdamW, 30 % of the tokens masked one by one
# (`--mask.scheme subword`: what a beginner learns fastest from). Only the start and the length of the blocks differ.
# Watch the losses on the held-out articles.

# %%
STEPS, TOKENS = 320, 768
masker = Masker.from_tokenizer(MaskConfig(scheme="subword", mask_share=0.3), tokenizer, seed=0, unigram_counts=counts_V)


def cut(documents, length):
    """Blocks of `length` tokens with [CLS] and [SEP]; ends of documents that are shorter are left out."""
    step = length - 2
    return [ids[i : i + step] for ids in documents for i in range(0, len(ids) - step + 1, step)]


def masked_batch(blocks, epoch, numbers):
    packed = pack_sequences([(blocks[i],) for i in numbers], tokenizer.cls_id, tokenizer.sep_id)
    return masker.mask(packed, epoch=epoch, indices=np.asarray(numbers)).tensors()


def train(from_counts, length):
    model, blocks, unseen = new_model(from_counts), cut(training, length), cut(held_out, length)
    shuffle = np.random.default_rng(0)
    validation = masked_batch(unseen, 9999, shuffle.permutation(len(unseen))[: 9600 // length])
    targets = validation.targets
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 30) * (1 - 0.9 * s / STEPS))
    order, curve, seen, began = shuffle.permutation(len(blocks)), [], 0, time.perf_counter()
    per_step = TOKENS // length
    for step in range(STEPS + 1):
        if step % 20 == 0:
            with torch.inference_mode():
                mlm, sbo = model(*validation)
            losses = float(mlm.loss_sum) / len(targets.ids_M), float(sbo.loss_sum) / len(targets.sbo_K)
            curve.append((seen, *losses))
        batch = masked_batch(blocks, step, np.take(order, range(step * per_step, (step + 1) * per_step), mode="wrap"))
        mlm, sbo = model(*batch)
        loss = mlm.loss_sum / len(batch.targets.ids_M) + sbo.loss_sum / len(batch.targets.sbo_K)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seen += batch.packed.tokens
    baseline = -log_frequency_V[targets.ids_M].mean()
    seconds = time.perf_counter() - began
    name = f"{'counts' if from_counts else 'random'}, blocks of {length}"
    print(
        f"{name:21} MLM {curve[0][1]:.2f} → {curve[-1][1]:.2f}   SBO {curve[0][2]:.2f} → {curve[-1][2]:.2f}   "
        f"unigram {baseline:.2f}   {seen:,} tokens, {seconds:.0f} s"
    )
    return model.eval(), np.array(curve), baseline


runs = {(start, length): train(start, length) for start, length in ((False, 16), (True, 256))}

# %%
runs |= {(start, length): train(start, length) for start, length in ((True, 48), (True, 16))}

# %%
figure, (mlm_axes, sbo_axes) = plt.subplots(1, 2, figsize=(8.4, 3.6), sharey=True)
for ((start, length), (_, curve, _)), color in zip(runs.items(), ("C4", "C3", "C1", "C0"), strict=True):
    label = f"{'counts' if start else 'random'}, blocks of {length}"
    for axes, column in ((mlm_axes, 1), (sbo_axes, 2)):
        axes.plot(curve[:, 0] / 1000, curve[:, column], color=color, label=label)
for axes, title in ((mlm_axes, "MLM"), (sbo_axes, "SBO")):
    axes.axhline(runs[True, 16][2], color="black", linestyle="--", linewidth=0.9)
    axes.set(title=title, xlabel="thousand tokens seen", ylim=(4.3, 7.0))
mlm_axes.text(240, runs[True, 16][2] + 0.05, "unigram", ha="right", va="bottom", fontsize=8)
mlm_axes.set_ylabel("loss on held-out articles, nats")
sbo_axes.legend(fontsize=8)
plt.show()

ended = {key: curve[-1] for key, (_, curve, _) in runs.items()}
lowest = min(curve[:, 1].min() for (start, _), (_, curve, _) in runs.items() if not start)
assert abs(lowest - runs[False, 16][2]) < 0.1  # random: at the unigram baseline, no further
for length in (48, 256):
    assert 0.3 < runs[True, length][2] - ended[True, length][1] < 0.6  # counts: below it, on the next plateau
assert ended[True, 16][1] < ended[True, 48][1] - 0.5  # short blocks: off
assert all(ended[True, length][2] < ended[True, length][1] - 0.5 for length in (48, 256))

# %% [markdown]
# There are *two* plateaus, one below the other.
#
# * **From random weights** (grey) the model comes down to the unigram line and stays on it. All its 320 steps went into
#   a table of counts, which took us one line of NumPy.
# * **From counts** the first plateau is skipped. Within 40 steps the models are below the line, soon at about 5.5 nats: they
#   know what a block is *about* (in an article on football, tokens of football) without knowing where anything stands.
#   That is the second plateau, and blocks of 48 and 256 stay on it here.
# * **In blocks of 16** MLM leaves it after about 150,000 tokens.
# * **SBO hardly has the problem**, whatever the length: look at the right-hand picture. The two neighbours of a span
#   are *handed* to that head; MLM must first find them, by attention.
#
# (At the start the losses are above the unigram line although the biases are right, because the untrained head's output
# is not zero; a few steps correct that.)
#
# ## What the model waits for
#
# The token to the left of a mask says more about it than any other. To use it, an attention head must learn to look one
# place to the left. Has it? Average the attention of each head by distance:


# %%
@torch.inference_mode()
def attention_by_distance(model, length, reach):
    """(heads of both layers, 2 · reach + 1): the mean attention that a token pays to the token at −reach … +reach."""
    blocks = cut(held_out, length)[: 6400 // length]
    batch = masked_batch(blocks, 9999, range(len(blocks))).packed
    captured = []
    hooks = [
        layer.qkv.register_forward_hook(lambda _module, _inputs, output: captured.append(output))
        for layer in model.encoder.layers
    ]
    model.encoder(*batch)
    for hook in hooks:
        hook.remove()
    heads = []
    for qkv in captured:
        q, k, _ = qkv.view(len(blocks), length, 3, shape.num_attention_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)  # (blocks, heads, length, length)
        heads.append(torch.stack([weights.diagonal(d, -2, -1).mean((0, 2)) for d in range(-reach, reach + 1)], 1))
    return torch.cat(heads).numpy()


figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.8))
found = {}
for ax, length in zip(axes, (16, 48, 256), strict=True):
    weights = attention_by_distance(runs[True, length][0], length, 5)
    found[length] = weights.max() * length
    for number, head in enumerate(weights):
        ax.plot(range(-5, 6), 100 * head, label=f"layer {number // 2 + 1}, head {number % 2 + 1}")
    ax.axhline(100 / length, color="black", linestyle="--", linewidth=0.9)
    ax.set(title=f"blocks of {length}", xlabel="place, relative to the token", ylim=(0, None))
axes[0].set_ylabel("attention, %")
axes[0].legend(fontsize=7)
plt.show()
print({length: f"{times:.1f} × uniform" for length, times in found.items()})
assert found[16] > 2 * 1.5

# %% [markdown]
# The dashed line is uniform attention, 1/length.
#
# In blocks of 16 the heads of the first layer have shared the work: one looks at the token to the left, the other at
# the token to the right, as if somebody had programmed it. In the longer blocks nothing of that is there yet: no head
# is far from uniform.
#
# ## Why short blocks are sooner
#
# At the start attention is nearly uniform, so a neighbour is one voice among `length`. What the model would gain by
# listening to it a little more should then be of the order of 1/length. That is a prediction about a *fresh* model, and
# can be measured before any training. Add a number b to the scores of both neighbours in the first layer, leave it at
# 0, and take the derivative of the loss: −dLoss/db is how strongly the data ask for "look next door".


# %%
def pull_of_the_neighbours(length, tokens=24576):
    """(−dLoss/db, norm of the gradient of the first layer's query and key matrices) of a fresh model."""
    model, blocks = new_model(True), cut(training, length)
    batch = masked_batch(blocks, 0, np.random.default_rng(1).permutation(len(blocks))[: tokens // length])
    is_next = (torch.arange(length)[:, None] - torch.arange(length)).abs() == 1
    b = torch.zeros(shape.num_hidden_layers, requires_grad=True)
    layer = iter(b)

    def attention(qkv, *_):
        q, k, v = qkv.view(-1, length, 3, *qkv.shape[2:]).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + next(layer) * is_next
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, *qkv.shape[2:])

    with patch.object(spanbert.model.encoder, "attention_of_projection", attention):
        mlm, _ = model(*batch, with_sbo=False)
    (mlm.loss_sum / len(batch.targets.ids_M)).backward()
    return -float(b.grad[0]), float(model.encoder.layers[0].qkv.weight.grad[: 2 * WIDTH].norm())


lengths = (8, 16, 32, 64, 128, 256)
pulls, norms = np.array([pull_of_the_neighbours(length) for length in lengths]).T
slopes = {
    name: np.polyfit(np.log(lengths), np.log(values), 1)[0]
    for name, values in (("towards the neighbours", pulls), ("all of queries and keys", norms))
}

figure, axes = plt.subplots(figsize=(5.8, 3.3))
axes.loglog(lengths, pulls / pulls[0], "o-", label="towards the neighbours, −dLoss/db")
axes.loglog(lengths, norms / norms[0], "s-", label="all of the query and key matrices (norm)")
axes.loglog(lengths, lengths[0] / np.array(lengths), "--", color="black", label="1/length")
axes.set(xlabel="length of a block, tokens", ylabel="gradient, as a share of length 8")
axes.set_xticks(lengths, [str(length) for length in lengths])
axes.minorticks_off()
axes.legend(fontsize=8, loc="lower left")
plt.show()
for name, slope in slopes.items():
    print(f"{name}: ∝ length^{slope:.2f}")
assert (pulls > 0).all() and -1.5 < slopes["towards the neighbours"] < -0.7
assert slopes["all of queries and keys"] > -0.5

# %% [markdown]
# The wish to look next door falls about like 1/length or a little faster, over a factor of 32 (single batches: the
# points scatter). The gradient of the query and key matrices as a whole does *not*: most of it is about other things
# (which tokens are worth looking at wherever they stand) and about chance. So a long block does not make the gradient
# small; it makes the one useful direction in it faint, and the optimizer, which scales its steps by the whole, follows
# the rest.
#
# ## What to remember
#
# * Two plateaus: the frequencies of tokens, then what a block is about. Counting skips the first; attention to
#   neighbours ends the second.
# * The block's length decides how soon. In the project's own runs (width 256, 16,000 tokens) blocks of 48 left the
#   plateau after about 600,000 tokens, and blocks of 256 had not done so after 2.8 million. Here blocks of 48 do not
#   leave it within the 250,000 tokens there was time for; 16 do.
# * So the bundled encoder began with counts and short blocks, and went on in long ones ([its
#   recipe](../spanbert/weights/encoder/README.md)).
# * This is about small models and minutes. Whether a run of days still profits was not measured; one run each, so
#   second decimals mean nothing.
