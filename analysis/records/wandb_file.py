"""The framing of a .wandb file: a header, then LevelDB's log format.

Blocks of 32 KiB hold records with a header of 7 bytes: crc32 (uint32) over type and data, length
(uint16), type (uint8), little-endian. An entry too long for what is left of a block is spread over
records of type first, middle, last. https://github.com/google/leveldb/blob/main/doc/log_format.md
(W&B departs from it in the header before the first block's records and in the plain crc32.)
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_BLOCK_BYTES = 32_768
_HEADER = struct.Struct("<IHB")
_FILE_HEADER_BYTES = 7
_MAGIC = b":W&B"
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def entries(data: bytes) -> Iterator[bytes]:
    """The whole entries of a file; one cut short at its end, by a kill or in writing, is left out.

    Raises:
        ValueError: no .wandb file, or damaged; what came before has been given then.
    """
    if data and not data.startswith(_MAGIC):
        raise ValueError("not a .wandb file")
    parts: list[bytes] = []
    for kind, body in _records(data):
        if (kind in (_FULL, _FIRST)) == bool(parts):
            raise ValueError("damaged: the parts of an entry are out of order")
        parts.append(body)
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and data of each record up to the end of the file."""
    position = _FILE_HEADER_BYTES
    while position + _HEADER.size <= len(data):
        left_in_block = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left_in_block < _HEADER.size:  # filled with zeros
            position += left_in_block
            continue
        crc, length, kind = _HEADER.unpack_from(data, position)
        start = position + _HEADER.size
        if start + length > len(data):
            return
        body = data[start : start + length]
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or zlib.crc32(bytes([kind]) + body) != crc:
            raise ValueError(f"damaged at byte {position}")
        yield kind, body
        position = start + length
