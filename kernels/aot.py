"""Compile every kernel configuration that can be selected, for sm_80 and sm_90, without a GPU, and look at the result.

    python -m kernels.aot                                  # everything, from the cache where nothing has changed
    python -m kernels.aot --only dkdv --only sm_90         # rows whose label holds all of these
    python -m kernels.aot --json docs/kernels_aot.json     # also write into the table, beside the other Triton's figures
    python -m kernels.aot --show docs/kernels_aot.json     # compile nothing: print the table, both Tritons side by side
    python -m kernels.aot --check docs/kernels_aot.json    # compile nothing: is that table faultless and of these sources?

One Triton can be installed at a time: run the command once with each of TRITONS and the same --json. Exit status 1 if a
kernel spills registers, asks for more shared memory than the device has, gets a performance warning from ptxas (C75…:
its matrix instructions then run one after another), or computes a half-precision product on sm_90 without Hopper's matrix
instructions (HGMMA). fp32 attention is exempt from the last: it is the exact path, and those instructions would round its
operands to tf32.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import triton

from kernels import (
    attention_backward_kernel,
    attention_forward_kernel,
    attention_masks_kernel,
    attention_tiles_kernel,
    cross_entropy_kernel,
    gelu_kernel,
    layer_norm_kernel,
    layer_norm_launch,
)
from kernels.attention_config import CAPABILITIES, all_configs, peeled
from kernels.cross_entropy_config import IGNORED
from kernels.device import interpreted
from kernels.machine_code import MachineCode, read_machine_code

#: Largest dynamic shared memory of a program, bytes (CUDA programming guide, "compute capabilities").
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
#: Triton versions that the table must hold: what a GPU machine is likely to have, and what the project is developed with.
TRITONS = ("3.6", "3.9")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fused_kernels_aot"


@dataclass(frozen=True)
class Specimen:
    """One compilation: a kernel, its argument types by name (pointers start with *), its constants, its launch."""

    label: str
    kernel: object
    capability: int
    types: dict[str, str]
    constants: dict[str, object]
    num_warps: int
    num_stages: int = 3
    matrix: bool = False  # must hold matrix instructions
    unaligned: tuple[str, ...] = field(default=())  # integers that need not be divisible by 16


def specimens() -> Iterator[Specimen]:
    """Everything that a launch can select."""
    for capability in CAPABILITIES:
        yield from _attention(capability)
        yield from _rows(capability)


def _attention(capability: int) -> Iterator[Specimen]:
    for config_capability, head_dim, dtype, config in all_configs():
        if config_capability != capability:
            continue
        half = dtype is not torch.float32
        kernels = (
            ("forward", attention_forward_kernel.attention_forward_kernel, config.forward),
            ("dq", attention_backward_kernel.attention_dq_kernel, config.dq),
            ("dkdv", attention_backward_kernel.attention_dkdv_kernel, config.dkdv),
        )
        for name, kernel, choice in kernels:
            for dropout in (False, True):
                constants = {"PEEL": peeled(capability, dtype)} if name == "forward" else {}
                yield Specimen(
                    f"attention {name} D{head_dim} {config.tile}x{choice.block} {NAMES[dtype]}"
                    f"{' dropout' if dropout else ''} sm_{capability}",
                    kernel,
                    capability,
                    _types(kernel, NAMES[dtype]),
                    constants
                    | {
                        "HEAD_DIM": head_dim,
                        "TILE": config.tile,
                        "BLOCK": choice.block,
                        "DROPOUT": dropout,
                        "PRECISION": "tf32" if half else "ieee",
                        "COMPILED": True,
                    },
                    choice.num_warps,
                    choice.num_stages,
                    matrix=half,
                    unaligned=("total", "heads", "words"),
                )
    for tile in (32, 64, 128):
        kernel = attention_masks_kernel.attention_masks_kernel
        yield Specimen(
            f"attention masks {tile} sm_{capability}",
            kernel,
            capability,
            _types(kernel, "i32"),
            {"TILE": tile, "GROUP": 4},
            attention_masks_kernel.WARPS,
            unaligned=("heads", "words", "threshold"),
        )
        kernel = attention_tiles_kernel.attention_tiles_kernel
        constants = {"TILE": tile, "GROUP": 64}
        yield Specimen(
            f"attention tiles {tile} sm_{capability}",
            kernel,
            capability,
            _types(kernel, "i32"),
            constants,
            4,
            unaligned=("sequences", "total", "slots"),
        )


def _rows(capability: int) -> Iterator[Specimen]:
    loose = ("rows", "threshold", "programs", "vocabulary")
    for dtype in NAMES.values():
        for forward, backward in layer_norm_launch.all_row_configs():
            for fused, dropout in ((False, False), (True, False), (True, True)):
                kind = "fused" if fused else "plain"
                for name, kernel, choice in (
                    ("forward", layer_norm_kernel.layer_norm_forward_kernel, forward),
                    ("backward", layer_norm_kernel.layer_norm_backward_kernel, backward),
                ):
                    constants = {"BLOCK": choice.block, "ROWS": choice.rows, "FUSED": fused, "DROPOUT": dropout}
                    if name == "backward":
                        constants["TWO_GRADIENTS"] = dropout
                    yield Specimen(
                        f"layer norm {kind} {name} {choice.block} {dtype}{' dropout' if dropout else ''} sm_{capability}",
                        kernel,
                        capability,
                        _types(kernel, dtype),
                        constants,
                        choice.num_warps,
                        unaligned=loose,
                    )
        for name, kernel in (
            ("forward", gelu_kernel.bias_gelu_forward_kernel),
            ("backward", gelu_kernel.bias_gelu_backward_kernel),
        ):
            constants = {"BLOCK": gelu_kernel.BLOCK, "ROWS": gelu_kernel.ROWS}
            label = f"bias gelu {name} {dtype} sm_{capability}"
            yield Specimen(
                label, kernel, capability, _types(kernel, dtype), constants, gelu_kernel.WARPS, unaligned=loose
            )
        kernel = cross_entropy_kernel.cross_entropy_kernel
        constants = {"BLOCK": cross_entropy_kernel.BLOCK, "GRADIENT": True, "IGNORED": IGNORED}
        label = f"cross entropy {dtype} sm_{capability}"
        yield Specimen(
            label, kernel, capability, _types(kernel, dtype), constants, cross_entropy_kernel.WARPS, unaligned=loose
        )
    kernel = layer_norm_kernel.partial_sum_kernel
    constants = {"BLOCK": layer_norm_launch.SUM_BLOCK, "ROWS": layer_norm_launch.SUM_ROWS}
    yield Specimen(
        f"partial sums sm_{capability}", kernel, capability, _types(kernel, "fp32"), constants, 4, unaligned=loose
    )


_FP32 = (
    "lse_ptr",
    "delta_ptr",
    "mean_ptr",
    "rstd_ptr",
    "partial_ptr",
    "sum_ptr",
    "loss_ptr",
    "weight_ptr",
    "ln_bias_ptr",
)
_INTEGER = {
    "tiles_ptr": "*i32",
    "masks_ptr": "*i32",
    "cu_ptr": "*i32",
    "correct_ptr": "*i32",
    "seed_ptr": "*i64",
    "target_ptr": "*i64",
}
_FLOATS = ("scale", "scale_log2", "keep_scale", "eps")


def _types(kernel: triton.JITFunction, dtype: str) -> dict[str, str]:
    """Argument types by name: activations in `dtype`, parameters, statistics and sums in fp32."""
    types = {}
    for name in kernel.arg_names:
        if name.isupper():
            continue
        if name.endswith("_ptr"):
            parameter = name in _FP32 or name == "bias_ptr"
            types[name] = _INTEGER.get(name, "*fp32" if parameter else f"*{dtype}")
        else:
            types[name] = "fp32" if name in _FLOATS else "i32"
    return types


def compile_specimen(specimen: Specimen) -> MachineCode:
    """Compile for the specimen's target and read the machine code."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    names = specimen.kernel.arg_names
    aligned = [
        name
        for name, kind in specimen.types.items()
        if kind.startswith("*") or (kind == "i32" and name not in specimen.unaligned)
    ]
    source = ASTSource(
        fn=specimen.kernel,
        signature={name: specimen.types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in specimen.constants.items()},
        # What the launcher finds out at run time: pointers and strides divisible by 16 allow vector loads.
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    log = io.StringIO()
    # ptxas speaks only when it runs, so never from Triton's cache, and Triton prints what it said.
    with triton.knobs.compilation.scope(), triton.knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        triton.knobs.compilation.always_compile = True
        triton.knobs.nvidia.dump_ptxas_log = True
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", specimen.capability, 32),
            options={"num_warps": specimen.num_warps, "num_stages": specimen.num_stages},
        )
    return read_machine_code(
        compiled.asm["cubin"], compiled.metadata.shared, log.getvalue(), specimen.num_warps, specimen.capability
    )


def machine_code(record: dict) -> MachineCode:
    """From a row of the table or the cache."""
    fields = {name: record[name] for name in MachineCode.__dataclass_fields__}
    return MachineCode(**fields | {"warnings": tuple(fields["warnings"])})


def source_key(specimen: Specimen) -> str:
    """Changes when the kernel's file, the dropout files, the reader of machine code, the constants, the launch or the types change."""
    folder = Path(__file__).parent
    file = Path(sys.modules[specimen.kernel.fn.__module__].__file__)
    digest = hashlib.sha256()
    for path in (file, folder / "dropout.py", folder / "dropout_kernel.py", folder / "machine_code.py"):
        digest.update(path.read_bytes())
    digest.update(
        repr(
            (
                specimen.label,
                sorted(specimen.types.items()),
                sorted(specimen.constants.items()),
                specimen.num_warps,
                specimen.num_stages,
                specimen.unaligned,
            )
        ).encode()
    )
    return digest.hexdigest()[:16]


def examine(specimen: Specimen) -> MachineCode:
    """`compile_specimen`, remembered on disk by source and Triton version."""
    path = CACHE / triton.__version__ / f"{source_key(specimen)}.json"
    if path.exists():
        return machine_code(json.loads(path.read_text()))
    code = compile_specimen(specimen)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(asdict(code)))
    temporary.replace(path)
    return code


def faults(specimen: Specimen, code: MachineCode) -> list[str]:
    """What is wrong with a compiled kernel, in words; empty if nothing."""
    found = []
    if code.spills:
        found.append(f"spills ({code.stack_bytes} bytes of stack, {code.local_accesses} local accesses)")
    if code.shared_bytes > SHARED_LIMIT[specimen.capability]:
        found.append(f"{code.shared_bytes} bytes of shared memory, the limit is {SHARED_LIMIT[specimen.capability]}")
    if code.warnings:
        found.append(f"ptxas warns: {', '.join(code.warnings)}")
    if specimen.matrix and not (code.hgmma if specimen.capability == 90 else code.hmma):
        found.append("no matrix instructions of its generation")
    return found


def check(path: Path) -> int:
    """0 if the table at `path` has every specimen under each of TRITONS, made from the sources as they are, and no faults;
    says what not."""
    rows = {row["label"]: row for row in json.loads(path.read_text())["rows"]}
    wrong = []
    for specimen in specimens():
        row, key = rows.pop(specimen.label, {}), source_key(specimen)
        for version in TRITONS:
            label = f"{specimen.label}, Triton {version}"
            if version not in row:
                wrong.append(f"{label}: not in the table")
            elif row[version]["key"] != key:
                wrong.append(f"{label}: compiled from other sources")
            else:
                wrong += [f"{label}: {fault}" for fault in faults(specimen, machine_code(row[version]))]
    wrong += [f"{label}: cannot be selected any more" for label in rows]
    print("\n".join(wrong[:20]) if wrong else f"{path}: every kernel that can be selected, none with faults")
    if wrong:
        print(f"{len(wrong)} entries are wrong: run `python -m kernels.aot --json {path}` with each Triton")
    return 1 if wrong else 0


def merge(path: Path, fresh: dict[str, dict]) -> None:
    """Write rows by label into the table under this Triton's version; keep the other's, drop what cannot be selected."""
    version = ".".join(triton.__version__.split(".")[:2])
    old = json.loads(path.read_text()) if path.exists() else {"triton": {}, "rows": []}
    rows = {row["label"]: row for row in old["rows"]}
    for label, row in fresh.items():
        rows.setdefault(label, {"label": label})[version] = row
    kept = [rows[s.label] for s in specimens() if s.label in rows]
    lines = ",\n".join(json.dumps(row) for row in kept)
    versions = json.dumps(old["triton"] | {version: triton.__version__})
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(f'{{"triton": {versions}, "rows": [\n{lines}\n]}}\n')
    temporary.replace(path)


def show(path: Path, only: list[str]) -> int:
    """Print the table, for each figure one column a Triton."""
    figures = ("registers", "local_accesses", "shared_bytes", "instructions", "loop", "blocks")
    print(f"{'kernel':58} " + " ".join(f"{name.split('_')[0]:>17}" for name in figures))
    for row in json.loads(path.read_text())["rows"]:
        if all(text in row["label"] for text in only):
            known = [row[version] for version in TRITONS if version in row]
            cells = (" / ".join(str(code[name]) for code in known) for name in figures)
            print(f"{row['label']:58} " + " ".join(f"{cell:>17}" for cell in cells))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="keep labels that hold this text; repeatable")
    parser.add_argument("--json", type=Path, help="also write into the table in this file")
    parser.add_argument("--check", type=Path, help="examine this table instead of compiling")
    parser.add_argument("--show", type=Path, help="print this table instead of compiling")
    arguments = parser.parse_args()
    if interpreted():
        sys.exit("error: TRITON_INTERPRET is set: unset it, the interpreter replaces the compiler")
    if arguments.check:
        return check(arguments.check)
    if arguments.show:
        return show(arguments.show, arguments.only)
    chosen = [s for s in specimens() if all(text in s.label for text in arguments.only)]
    print(
        f"{'kernel':58} {'warps':>5} {'stages':>6} {'regs':>5} {'spill':>5} {'shared':>7} {'HGMMA':>5} {'HMMA':>5} "
        f"{'instr':>6} {'loop':>5} {'blocks':>6}"
    )
    table, bad = {}, 0
    for specimen in chosen:
        code = examine(specimen)
        found = faults(specimen, code)
        bad += bool(found)
        print(
            f"{specimen.label:58} {specimen.num_warps:5} {specimen.num_stages:6} {code.registers:5} {code.local_accesses:5} "
            f"{code.shared_bytes:7} {code.hgmma:5} {code.hmma:5} {code.instructions:6} {code.loop:5} {code.blocks:6}"
            f"  {'; '.join(found)}",
            flush=True,
        )
        table[specimen.label] = {"key": source_key(specimen), **asdict(code)}
    if arguments.json:
        merge(arguments.json, table)
    print(f"{len(table)} kernels, {bad} with faults")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
