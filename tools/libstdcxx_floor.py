"""Lets a library that was built with a newer gcc load beside an older libstdc++.

The library's requirement of one libstdc++ version is marked as weak: the loader then no longer refuses the library
where that version is missing. The symbols behind the version must come from elsewhere, such as a preloaded library.

    python tools/libstdcxx_floor.py LIBRARY.so VERSION      for example GLIBCXX_3.4.32

Layouts are those of the ELF specification and of the Linux Standard Base (symbol versioning), 64 bits, little-endian.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_SHT_GNU_VERNEED = 0x6FFFFFFE
_VER_FLG_WEAK = 0x2

_SECTION = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, address, offset, size, link, info, alignment, entry size
_NEED = struct.Struct("<HHIII")  # version, number of auxiliaries, file, offset of the first, offset of the next need
_AUXILIARY = struct.Struct("<IHHII")  # hash, flags, index, name, offset of the next


def sections(library: bytes) -> list[tuple[int, ...]]:
    """Returns the section headers."""
    (offset,) = struct.unpack_from("<Q", library, 0x28)
    size, number = struct.unpack_from("<HH", library, 0x3A)
    return [_SECTION.unpack_from(library, offset + i * size) for i in range(number)]


def requirements(library: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields (offset of the entry, name) of each version that the library requires of others."""
    headers = sections(library)
    for _, kind, _, _, need, _, link, number, _, _ in headers:
        if kind != _SHT_GNU_VERNEED:
            continue
        names = headers[link][4]
        for _ in range(number):
            _, number_auxiliaries, _, first, following = _NEED.unpack_from(library, need)
            entry = need + first
            for _ in range(number_auxiliaries):
                _, _, _, name, step = _AUXILIARY.unpack_from(library, entry)
                start = names + name
                yield entry, library[start : library.index(b"\0", start)]
                entry += step
            need += following


def weaken(library: bytearray, version: bytes) -> bool:
    """Marks the requirement of a version as weak; returns whether anything changed."""
    changed = False
    for entry, name in requirements(bytes(library)):
        checksum, flags, index, place, step = _AUXILIARY.unpack_from(library, entry)
        if name == version and not flags & _VER_FLG_WEAK:
            _AUXILIARY.pack_into(library, entry, checksum, flags | _VER_FLG_WEAK, index, place, step)
            changed = True
    return changed


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} LIBRARY.so VERSION")
    path = Path(sys.argv[1])
    library = bytearray(path.read_bytes())
    if not library.startswith(_MAGIC):
        sys.exit(f"{path}: not a 64-bit little-endian ELF file")
    if weaken(library, sys.argv[2].encode()):
        path.write_bytes(library)


if __name__ == "__main__":
    main()
