"""Which shared libraries a 64-bit little-endian ELF program asks for, and its interpreter. No tool is needed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


@dataclass(frozen=True, kw_only=True)
class Needs:
    """``interpreter`` is a path or "" (a static program, a library); ``libraries`` are sonames."""

    interpreter: str = ""
    libraries: tuple[str, ...] = ()


def needs(path: Path) -> Needs | None:
    """What ``path`` needs to run; None where it is no 64-bit little-endian ELF file."""
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
            return None
        offset, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
        file.seek(offset)
        table = file.read(size * count)
        loads: list[tuple[int, int, int]] = []
        dynamic = interp = (0, 0)
        for index in range(count):
            kind, _, start, address, _, length = struct.unpack_from("<IIQQQQ", table, index * size)
            if kind == _PT_LOAD:
                loads.append((address, length, start))
            elif kind == _PT_DYNAMIC:
                dynamic = (start, length)
            elif kind == _PT_INTERP:
                interp = (start, length)

        def at(start: int, length: int) -> bytes:
            file.seek(start)
            return file.read(length)

        interpreter = at(*interp).rstrip(b"\0").decode() if interp[1] else ""
        entries = [struct.unpack_from("<qQ", block) for block in _chunks(at(*dynamic), 16)]
        strings = next((value for tag, value in entries if tag == _DT_STRTAB), 0)
        base = next((start + strings - low for low, length, start in loads if low <= strings < low + length), None)
        if base is None:
            return Needs(interpreter=interpreter)
        libraries = []
        for tag, value in entries:
            if tag == _DT_NULL:
                break
            if tag == _DT_NEEDED:
                libraries.append(at(base + value, 256).split(b"\0", 1)[0].decode())
        return Needs(interpreter=interpreter, libraries=tuple(libraries))


def _chunks(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data) - size + 1, size)]
