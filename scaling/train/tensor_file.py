"""Writing a safetensors file block by block, hashed on the way, with no second copy in memory.

The library writes tensors that are all in memory, and its file would have to be read again for a
checksum. The format is eight bytes of header length, a JSON header and the tensors one after
another; the library reads what is written here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Layout(NamedTuple):
    """One tensor of a file to be."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Written(NamedTuple):
    """A file as it was handed to the disk."""

    sha256: str
    n_bytes: int


def write_tensor_file(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """A safetensors file of CPU tensors, flushed to the disk."""
    layout = {name: Layout(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return write_blocks(path, layout, lambda name: [tensors[name]])


def write_blocks(
    path: Path, layout: Mapping[str, Layout], blocks: Callable[[str], Iterable[Tensor]]
) -> Written:
    """The same from `blocks(name)`: a tensor's rows in order, as many at a time as one likes.

    Raises:
        ValueError: the blocks of a tensor do not make up its shape.
    """
    # Wide types first, as the library does it: every tensor is aligned to its type.
    names = sorted(layout, key=lambda name: (-layout[name].dtype.itemsize, name))
    sha256, n_bytes = hashlib.sha256(), 0
    with path.open("wb") as file:

        def put(data: bytes | memoryview) -> None:
            nonlocal n_bytes
            file.write(data)
            sha256.update(data)
            n_bytes += len(data)

        put(_header(layout, names))
        for name in names:
            end = n_bytes + layout[name].n_bytes
            for block in blocks(name):
                put(_bytes_of(block))
            if n_bytes != end:
                raise ValueError(f"blocks of {name} do not make up {layout[name]}")
        file.flush()
        os.fsync(file.fileno())
    return Written(sha256.hexdigest(), n_bytes)


def _header(layout: Mapping[str, Layout], names: list[str]) -> bytes:
    entries, offset = {}, 0
    for name in names:
        dtype, shape = layout[name]
        end = offset + layout[name].n_bytes
        entries[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
