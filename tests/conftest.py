"""Before any test: one thread, no network, and Triton's interpreter where there is no GPU.

One thread, because the models here are tiny, and two spinning threads beside another busy process are far slower. The
interpreter has to be chosen before triton is imported, and any test module may import triton through torch; so the kernels
are imported here, first of all, under TRITON_INTERPRET=1, and the variable is taken away again: only tests that ask for the
fixture `triton_device` (tests/kernels) see it, the others run the ops' references.
"""

import importlib
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)

KERNEL_MODULES = (
    "attention_backward_kernel",
    "attention_forward_kernel",
    "attention_launch",
    "attention_masks_kernel",
    "attention_tiles_kernel",
    "cross_entropy_kernel",
    "dropout_kernel",
    "gelu_kernel",
    "layer_norm_kernel",
    "layer_norm_launch",
)
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    assert "triton" not in sys.modules, "something imported triton before the tests' first conftest.py"
    os.environ["TRITON_INTERPRET"] = "1"
    for name in KERNEL_MODULES:
        importlib.import_module(f"kernels.{name}")
    del os.environ["TRITON_INTERPRET"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Whatever the test before this one did: a sum's order cannot depend on the machine."""
    torch.set_num_threads(1)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their argument and number: archives hold the time, and processes that share the tests must agree."""
    return argname if isinstance(val, bytes) else None
