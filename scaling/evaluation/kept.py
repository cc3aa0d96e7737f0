"""Tensors that evaluations of any run on the same activations need, kept in `data_dir`.

A file's name is a hash of all that its content hangs on: the subject model, layer and dtype, which
tokens are left out, and what the caller adds. One that is damaged is made again, and so is what
could not be written: to keep it saves time alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from scaling.errors import UserError
from scaling.evaluation.material import Material
from scaling.storage.atomic import write_bytes
from scaling.storage.hashing import canonical_json, sha256_hex

ID_DIGITS = 16


def kept(
    material: Material,
    folder: str,
    what: Mapping[str, Any],
    make: Callable[[], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """What `make` gives, made at the first call with that `what` (JSON): on the CPU."""
    path = material.request.data_dir / folder / f"{_name(material, what)}.safetensors"
    found = _read(path)
    if found is None:
        found = {name: tensor.contiguous() for name, tensor in make().items()}
        with suppress(OSError, UserError):  # full, or another's
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, save(found))
    return found


def _name(material: Material, what: Mapping[str, Any]) -> str:
    of_vectors = {
        "model": material.request.recipe.model,
        "layer": material.request.layer,
        "dtype": str(material.dtype),
        "drop_positions": material.held_out.drop_positions,
        "max_norm": repr(float(material.held_out.max_norm)),  # JSON has no infinity
    }
    return sha256_hex(canonical_json({**of_vectors, **what}))[:ID_DIGITS]


def _read(path: Path) -> dict[str, Tensor] | None:
    """None where there is no such file, or none that can be read."""
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError):
        return None
