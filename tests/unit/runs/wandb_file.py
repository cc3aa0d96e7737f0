"""Reads the .wandb file that an offline run leaves: what W&B itself would upload.

LevelDB log framing: 32 KiB blocks of records, each with a header of 7 bytes (crc32 uint32, length
uint16, type uint8) over type + data; a long entry is spread over records first, middle, last.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK_BYTES, _HEADER_BYTES, _FILE_HEADER_BYTES = 32_768, 7, 7
_FULL, _LAST = 1, 4


def read_wandb_file(path: Path) -> dict[str, Any]:
    """history: a list of rows; config, summary: flat dicts; run, metrics: protobufs."""
    copy: dict[str, Any] = {"history": [], "config": {}, "summary": {}, "metrics": []}
    for entry in _entries(path.read_bytes()):
        record = Record.FromString(entry)
        match record.WhichOneof("record_type"):
            case "run":
                copy["run"] = record.run
                copy["config"] |= _values(record.run.config.update)
            case "history":
                copy["history"].append(_values(record.history.item))
            case "summary":
                copy["summary"] |= _values(record.summary.update)
            case "metric":
                copy["metrics"].append(record.metric)
            case "exit":
                copy["exit_code"] = record.exit.exit_code
    return copy


def _values(items: Any) -> dict[str, Any]:
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


def _entries(data: bytes) -> Iterator[bytes]:
    position, parts = _FILE_HEADER_BYTES, b""
    while position + _HEADER_BYTES <= len(data):
        left_in_block = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left_in_block < _HEADER_BYTES:
            position += left_in_block
            continue
        crc, length, kind = struct.unpack_from("<IHB", data, position)
        body = data[position + _HEADER_BYTES : position + _HEADER_BYTES + length]
        assert zlib.crc32(bytes([kind]) + body) == crc
        position += _HEADER_BYTES + length
        parts += body
        if kind in (_FULL, _LAST):
            yield parts
            parts = b""
