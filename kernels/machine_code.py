"""What the compiler made of a kernel: registers, stack, shared memory, its inner loop, and what ptxas complains of.

Reads a cubin with the `cuobjdump` and `nvdisasm` that Triton's wheel carries, and the log of ptxas; no GPU is needed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

#: Shared memory of a multiprocessor in bytes (CUDA programming guide, "compute capabilities"), 1 KB a block reserved.
SHARED_OF_MULTIPROCESSOR = {80: 164 * 1024, 90: 228 * 1024}
RESERVED_SHARED, REGISTERS, WARPS, BLOCKS = 1024, 65536, 64, 32


@dataclass(frozen=True)
class MachineCode:
    """One compiled kernel. Spilled registers show as local loads and stores (`local_accesses`) and as stack bytes."""

    registers: int  # per thread
    stack_bytes: int  # per thread
    shared_bytes: int  # per program
    hgmma: int  # Hopper's matrix instructions (warp group)
    hmma: int  # the older matrix instructions (warp)
    local_accesses: int  # LDL + STL: spills
    instructions: int
    loop: int  # instructions of the shortest pass of the inner loop; 0 where there is no loop
    blocks: int  # programs that a multiprocessor holds at once
    warnings: tuple[str, ...]  # ptxas's performance warnings, such as C7515: "wgmma will be serialized"

    @property
    def spills(self) -> bool:
        return self.local_accesses > 0 or self.stack_bytes > 0


def read_machine_code(cubin: bytes, shared_bytes: int, log: str, num_warps: int, capability: int) -> MachineCode:
    """Disassemble a cubin.

    Args:
        shared_bytes: the dynamic shared memory of the launch (the compiled kernel's metadata).
        log: what `ptxas -v` said when it made this cubin.

    Raises:
        RuntimeError: the log is not that of `ptxas -v` on this cubin. An empty log would pass any search for warnings.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        listing = _run("nvdisasm", "-c", file.name)
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    said = re.search(r"Used (\d+) registers", log)
    if said is None or int(said[1]) != registers:
        raise RuntimeError(f"ptxas's log is not of this kernel of {registers} registers: {log[:300]!r}")
    code = instructions_of(listing)
    opcodes = Counter(instruction.opcode for instruction in code)
    shared_bytes += int(re.search(r"SHARED:(\d+)", usage)[1])
    return MachineCode(
        registers=registers,
        stack_bytes=int(re.search(r"STACK:(\d+)", usage)[1]) + int(re.search(r"LOCAL:(\d+)", usage)[1]),
        shared_bytes=shared_bytes,
        hgmma=opcodes["HGMMA"],
        hmma=opcodes["HMMA"],
        local_accesses=opcodes["LDL"] + opcodes["STL"],
        instructions=sum(opcodes.values()) - opcodes["NOP"],
        loop=inner_loop(code),
        blocks=resident_blocks(registers, shared_bytes, num_warps, capability),
        warnings=performance_warnings(log),
    )


def performance_warnings(log: str) -> tuple[str, ...]:
    """The codes of ptxas's messages C7500 … C7599, each once: "(C7515) Potential Performance Loss: wgmma … serialized"."""
    return tuple(sorted(set(re.findall(r"\bC75\d\d\b", log))))


def resident_blocks(registers: int, shared_bytes: int, num_warps: int, capability: int) -> int:
    """Programs of a kernel that fit a multiprocessor, by CUDA's rules: registers go to a warp in units of 256, warps in
    groups of four; shared memory, with 1 KB reserved for each program."""
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256) // 4 * 4 // num_warps
    by_shared = SHARED_OF_MULTIPROCESSOR[capability] // (shared_bytes + RESERVED_SHARED)
    return min(by_registers, by_shared, WARPS // num_warps, BLOCKS)


@dataclass(frozen=True)
class Instruction:
    """One line of the disassembly. `target`: index of the instruction it may jump to; `always`: whether it must."""

    opcode: str
    target: int | None
    always: bool


def instructions_of(listing: str) -> list[Instruction]:
    """The instructions of `nvdisasm -c`, in order, with the jumps between them resolved."""
    labels: dict[str, int] = {}
    parsed: list[tuple[str, str | None, bool]] = []
    for line in listing.splitlines():
        if label := re.match(r"^(\.L_\w+):", line):
            labels[label[1]] = len(parsed)
        found = re.match(r"^\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z0-9]+)([^;]*)", line)
        if found:
            jump = re.search(r"`\((\.L_\w+)\)", found[3]) if found[2] == "BRA" else None
            conditional = bool(found[1]) or bool(re.search(r"\bU?P\d\b", found[3]))
            parsed.append((found[2], jump and jump[1], not conditional))
    return [Instruction(opcode, labels.get(jump), always) for opcode, jump, always in parsed]


def inner_loop(code: list[Instruction]) -> int:
    """Instructions of one pass of the loop with the most matrix instructions (then: the longest), by the shortest way
    through it: a pass that skips what only the last block of a sequence needs. 0 without a loop."""
    loops = [(one.target, end) for end, one in enumerate(code) if one.target is not None and one.target <= end]
    loops = [(start, end) for start, end in loops if code[start].opcode != "BRA" or start != end]  # not the final trap
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    if not inner:
        return 0

    def weight(loop: tuple[int, int]) -> tuple[int, int]:
        body = code[loop[0] : loop[1] + 1]
        return sum(one.opcode in ("HGMMA", "HMMA") for one in body), len(body)

    start, end = max(inner, key=weight)
    shortest = {start: 1}
    for place in range(start, end):
        if place not in shortest:
            continue
        one = code[place]
        following = [] if one.target is not None and one.always else [place + 1]
        if one.target is not None and place < one.target <= end:
            following.append(one.target)
        for after in following:
            step = shortest[place] + (code[after].opcode != "NOP")
            shortest[after] = min(shortest.get(after, step), step)
    return shortest.get(end, end - start + 1)


def _run(tool: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([str(path), *arguments], check=True, capture_output=True, text=True).stdout
