"""BERT's post-LayerNorm Transformer encoder (Devlin et al. 2019) over packed tokens.

Everything inside is (T, H): the T real tokens of all sequences end to end. No padding, so no attention mask, no −10000,
no rows of NaN; a linear layer sees one 2-D matrix; only attention needs to know where a sequence ends (``cu_seqlens``).

    embeddings   LayerNorm(word + position + type) → dropout
    layer        x ← LayerNorm(x + dropout(attention(x) Wo + bo))
                 x ← LayerNorm(x + dropout(GELU(x W1 + b1) W2 + b2))
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert.errors import UserError
from spanbert.model.attention import attention_of_projection, attention_plan, leave_loop_to_python
from spanbert.model.backend import load_kernels
from spanbert.model.config import EncoderConfig
from spanbert.model.dropout import dropout
from spanbert.model.lora import product
from spanbert.model.packing import position_ids


class Embeddings(nn.Module):
    """Word + learned position + token-type embeddings, LayerNorm, dropout."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout_p = config.hidden_dropout_prob

    def forward(
        self, input_ids_T: Tensor, position_ids_T: Tensor, token_type_ids_T: Tensor | None, seed: Tensor | int
    ) -> Tensor:
        one_type = token_type_ids_T is None or self.token_type.num_embeddings == 1  # then both segments are of type 0
        types = self.token_type.weight[0] if one_type else self.token_type(token_type_ids_T)
        x_TH = self.norm(self.word(input_ids_T) + self.position(position_ids_T) + types)
        return dropout(x_TH, self.dropout_p if self.training else 0.0, seed)


class DropoutAddLayerNorm(nn.Module):
    """LayerNorm(residual + dropout(x W + b)): how both halves of a layer end. One kernel after the product on a GPU."""

    def __init__(self, in_features: int, config: EncoderConfig):
        super().__init__()
        self.linear = nn.Linear(in_features, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout_p = config.hidden_dropout_prob

    def forward(self, x: Tensor, residual_TH: Tensor, backend: str, seed: Tensor | int) -> Tensor:
        dropout_p = self.dropout_p if self.training else 0.0
        if backend == "triton":
            return load_kernels().dropout_add_layer_norm(
                product(self.linear, x),
                self.linear.bias,
                residual_TH,
                self.norm.weight,
                self.norm.bias,
                p=dropout_p,
                eps=self.norm.eps,
                seed=seed,
            )
        return self.norm(residual_TH + dropout(self.linear(x), dropout_p, seed))


class Layer(nn.Module):
    """Self-attention and feed-forward, each closed by dropout, residual addition and LayerNorm."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.attention_dropout_p = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.attention_out = DropoutAddLayerNorm(config.hidden_size, config)
        self.feed_forward_in = nn.Linear(config.hidden_size, config.intermediate_size)
        self.feed_forward_out = DropoutAddLayerNorm(config.intermediate_size, config)

    def forward(
        self,
        x_TH: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        backend: str,
        seed: Tensor | int,
        plan: Any = None,
        wanted_N: Tensor | None = None,
    ) -> Tensor:
        """→ (T, H); of ``wanted_N``, (N,) int64, only these tokens: (N, H). All of them are attended to either way."""
        qkv_T3HD = self.qkv(x_TH).view(x_TH.shape[0], 3, self.heads, -1)
        dropout_p = self.attention_dropout_p if self.training else 0.0
        context_THD = attention_of_projection(qkv_T3HD, cu_seqlens, max_seqlen, dropout_p, backend, seed, plan)
        if wanted_N is not None:  # three quarters of a layer's products come after attention
            context_THD, x_TH = context_THD[wanted_N], x_TH[wanted_N]
        x_TH = self.attention_out(context_THD.flatten(1), x_TH, backend, seed + 1)
        return self.feed_forward_out(self._intermediate(x_TH, backend), x_TH, backend, seed + 2)

    def _intermediate(self, x_TH: Tensor, backend: str) -> Tensor:
        """GELU(x W1 + b1), the exact, erf GELU: (T, H) → (T, F)."""
        linear = self.feed_forward_in
        if backend == "triton":
            return load_kernels().bias_gelu(product(linear, x_TH), linear.bias)
        return F.gelu(linear(x_TH))


class Encoder(nn.Module):
    """N layers over the embeddings.

    ``backend`` is one of ``eager``, ``sdpa``, ``triton`` and may be changed between calls. ``dropout_seed`` keys the
    masks of the triton kernels and those drawn on a CPU: set another before every forward pass in training, or leave
    it None, and PyTorch's generator chooses one. Each layer takes three numbers from it, the embeddings the next.
    """

    def __init__(self, config: EncoderConfig, backend: str = "eager"):
        super().__init__()
        self.config = config
        self.backend = backend
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.dropout_seed: Tensor | int | None = None

    def compile_layers(self) -> None:
        """Compile each layer (torch.compile, once for all of them and for all lengths).

        ``dropout_seed`` should then be a tensor: a new number would be a new program. With the triton back-end a layer
        is one graph; with the others attention stays outside, and a layer is two. Raises UserError where there is no
        compiler.
        """
        on_cpu = self.embeddings.word.weight.device.type == "cpu"
        compiler = os.environ.get("CXX", "g++")
        if on_cpu and shutil.which(compiler) is None:
            raise UserError(
                f"--compile needs the C++ compiler {compiler!r} on a CPU: install it, or leave --compile out"
            )
        leave_loop_to_python()
        for layer in self.layers:
            layer.compile(dynamic=True)

    def forward(
        self,
        input_ids_T: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        token_type_ids_T: Tensor | None = None,
        position_ids_T: Tensor | None = None,
        *,
        wanted_N: Tensor | None = None,
    ) -> Tensor:
        """Packed token ids (T,) int64, cu_seqlens (B + 1,) int32 → hidden states (T, H).

        wanted_N: (N,) int64, the tokens whose states a head looks at → (N, H), in this order: the last layer works for
            them alone.
        """
        if position_ids_T is None:
            position_ids_T = position_ids(cu_seqlens, input_ids_T.shape[0])
        seed = self.dropout_seed
        if seed is None:
            seed = int(torch.randint(2**62, ())) if self.training else 0
        x_TH = self.embeddings(input_ids_T, position_ids_T, token_type_ids_T, seed + 3 * len(self.layers))
        plan = attention_plan(x_TH, cu_seqlens, self.config.head_dim, self.backend)
        for number, layer in enumerate(self.layers):
            wanted = wanted_N if number == len(self.layers) - 1 else None
            x_TH = layer(x_TH, cu_seqlens, max_seqlen, self.backend, seed + 3 * number, plan, wanted)
        return x_TH


def initialise(module: nn.Module, std: float) -> None:
    """BERT's initialisation: matrices and embeddings N(0, std), biases 0, LayerNorm (1, 0). Apply to a whole model."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def count_parameters(module: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())


def train_flops_per_token(
    config: EncoderConfig,
    length: float,
    targets_per_token: float = 0.15,
    sbo: bool = True,
    states_per_token: float = 1.0,
) -> float:
    """Model FLOPs of one training step per token: 6 per weight that a token meets, plus attention's 12·L·H a layer.

    Only the work the model needs is counted (heads on their targets, no recomputation), so it serves as the numerator
    of model-FLOPs utilisation. states_per_token: last states that the heads look at; what the last layer does after its
    attention is for them alone.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    layer_weights = 4 * hidden * hidden + 2 * hidden * config.intermediate_size
    after_attention = hidden * hidden + 2 * hidden * config.intermediate_size
    not_needed = 6 * after_attention * max(0.0, 1.0 - states_per_token)
    encoder = layers * (6 * layer_weights + 12 * length * hidden) - not_needed
    mlm = 6 * targets_per_token * (hidden * hidden + hidden * config.vocab_size)
    boundary = 6 * targets_per_token * (hidden * hidden + hidden * config.vocab_size)
    return encoder + mlm + (boundary if sbo else 0.0)
