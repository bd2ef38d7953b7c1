"""What the compiler made of a kernel: registers, stack, shared memory, and the instructions that matter.

Reads a cubin with the `cuobjdump` and `nvdisasm` that Triton's wheel carries; no GPU is needed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton


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

    @property
    def spills(self) -> bool:
        return self.local_accesses > 0 or self.stack_bytes > 0


def read_machine_code(cubin: bytes, shared_bytes: int) -> MachineCode:
    """Disassemble a cubin. `shared_bytes` is the dynamic shared memory of the launch (the compiled kernel's metadata)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        listing = _run("nvdisasm", "-c", file.name)
    opcodes = Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", listing, re.MULTILINE))
    local = int(re.search(r"LOCAL:(\d+)", usage)[1])
    return MachineCode(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        stack_bytes=int(re.search(r"STACK:(\d+)", usage)[1]) + local,
        shared_bytes=shared_bytes + int(re.search(r"SHARED:(\d+)", usage)[1]),
        hgmma=opcodes["HGMMA"],
        hmma=opcodes["HMMA"],
        local_accesses=opcodes["LDL"] + opcodes["STL"],
        instructions=sum(opcodes.values()) - opcodes["NOP"],
    )


def _run(tool: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([str(path), *arguments], check=True, capture_output=True, text=True).stdout
