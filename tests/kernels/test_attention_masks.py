"""Dropout masks of attention: the kernel against its reference, and the assembly that applies them against arithmetic."""

from __future__ import annotations

import re

import pytest
import torch

from kernels.attention_masks import attention_masks_reference, mask_words
from kernels.attention_tiles import attention_tiles_reference

SEED = 81985529216486895


@pytest.mark.parametrize("tile", [32, 64])
@pytest.mark.parametrize("lengths", [[1], [40, 0, 129], [64, 65]], ids=str)
def test_kernel_writes_the_reference(tile, lengths, triton_device):
    """Every word of a query and its keys; what belongs to nothing is not looked at."""
    from kernels.attention_masks_kernel import launch_attention_masks

    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    tiles = attention_tiles_reference(cu, sum(lengths) + 3, tile)
    seed = torch.tensor(SEED, device=triton_device)
    masks = launch_attention_masks(tiles.to(triton_device), tile, 2, max(lengths), seed, 0.3).cpu()
    reference = attention_masks_reference(tiles, tile, 2, max(lengths), SEED, 0.3)
    assert masks.shape == reference.shape == (2, mask_words(max(lengths)), len(tiles) * tile)
    for slot, (row_start, row_end, key_start, key_end) in enumerate(tiles.tolist()):
        for word in range((key_end - key_start + 31) // 32):
            bits = min(32, key_end - key_start - 32 * word)
            at = (slice(None), word, slice(slot * tile, slot * tile + row_end - row_start))
            kept = (1 << bits) - 1
            assert torch.equal(masks[at].long() & kept, reference[at].long() & kept)


def run(assembly: str, registers: dict[str, int], rounded: dict[tuple[int, int], int]) -> int:
    """Execute the few instructions that kernels/dropout_kernel.py uses, as the PTX manual (§9.7) defines them."""
    for line in re.findall(r"^([a-z].*?);", assembly, re.MULTILINE):
        opcode, *operands = re.split(r"[\s,]+", line)
        to, *sources = operands
        a = [registers[x] if x in registers else int(x, 0) for x in sources]
        if opcode == "shl.b32":
            value = a[0] << a[1]
        elif opcode == "add.s32":
            value = a[0] + a[1]
        elif opcode == "mad.lo.s32":
            value = a[0] * a[1] + a[2]
        elif opcode == "and.b32":
            value = a[0] & a[1]
        elif opcode == "prmt.b32":
            value = 0
            for byte in range(4):
                selector = a[2] >> 4 * byte & 15
                chosen = (a[1] << 32 | a[0]) >> 8 * (selector & 7) & 255
                value |= ((255 if chosen >> 7 else 0) if selector & 8 else chosen) << 8 * byte
        elif opcode.startswith("cvt.rn."):
            value = rounded[a[0], a[1]]  # the first operand is the upper half
        else:
            raise AssertionError(f"{opcode} is not known here")
        registers[to] = value & 0xFFFFFFFF
    return registers["$0"]


def signs(word: int, column: int, transposed: bool) -> tuple[int, int]:
    """(shifted word, byte) of a column, as `_signs` and `drop_transposed` make them."""
    if transposed:
        return word << (7 - column % 8) & 0xFFFFFFFF, column // 8
    b, c, k = column % 2, column // 2 % 4, column // 8
    return word << (6 - 2 * c) << (1 - b) & 0xFFFFFFFF, k


@pytest.mark.parametrize("transposed", [False, True])
def test_assembly_drops_single_scores(transposed):
    """The interpreter runs a selection instead: here the assembly itself, on every column of some words."""
    from kernels.dropout_kernel import DROP_SCORE

    score = 0x3F8ABCDE
    for word in (0, 0xFFFFFFFF, 0x80000001, 0x12345678, 0xDEADBEEF):
        for column in range(32):
            shifted, byte = signs(word, column, transposed)
            registers = {"$1": score, "$2": shifted, "$3": byte}
            assert run(DROP_SCORE.value, registers, {}) == (score if word >> column & 1 else 0), column


def test_assembly_drops_pairs():
    from kernels.dropout_kernel import DROP_BF16, DROP_FP16

    for word in (0, 0xFFFFFFFF, 0x80000001, 0x12345678, 0xDEADBEEF):
        for column in range(0, 32, 2):
            (low, low_byte), (high, high_byte) = (signs(word, column + i, False) for i in (0, 1))
            registers = {"$1": 11, "$2": 22, "$3": low, "$4": high, "$5": low_byte, "$6": high_byte}
            kept = 0xFFFF * (word >> column & 1) | 0xFFFF0000 * (word >> column + 1 & 1)
            for assembly in (DROP_BF16.value, DROP_FP16.value):
                assert run(assembly, dict(registers), {(22, 11): 0xABCD1234}) == 0xABCD1234 & kept
