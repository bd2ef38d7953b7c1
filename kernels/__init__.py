"""Fused kernels for encoders over packed (ragged) batches: variable-length attention and the LayerNorm family.

Needs torch, and triton for anything on a GPU. Nothing here imports the model: take the folder as it is.
Each kernel is five things: a reference in plain PyTorch (also what runs on a CPU), the Triton kernel, its
launcher, a `torch.library` op with autograd, and a test. `python -m kernels.aot` compiles everything without a GPU.
"""

from kernels.attention import attention_varlen, attention_varlen_qkv
from kernels.attention_tiles import AttentionPlan, attention_plan
from kernels.cross_entropy import LinearCrossEntropy, linear_cross_entropy
from kernels.gelu import bias_gelu
from kernels.layer_norm import dropout_add_layer_norm, layer_norm

__all__ = [
    "AttentionPlan",
    "LinearCrossEntropy",
    "attention_plan",
    "attention_varlen",
    "attention_varlen_qkv",
    "bias_gelu",
    "dropout_add_layer_norm",
    "layer_norm",
    "linear_cross_entropy",
]
