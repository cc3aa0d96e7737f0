"""The doors through which tensors of other people come in: safetensors, and `.pt` as data.

A `.pt` file is a pickle, which is a program. `torch.load(weights_only=True)` builds tensors and
plain containers and refuses everything else without running it; nothing here opens such a file in
another way. What comes in is taken by name and looked at before it is used.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scaling.errors import UserError

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Tensors:
    """What a file of weights holds, by its own names."""

    path: Path
    values: dict[str, Any]

    def take(self, name: str, *shape: int | None) -> Tensor:
        """Remove `name`, and return it in float32; None in `shape` stands for any size.

        Raises:
            UserError: it is absent, no dense tensor of floats, of another shape, or not finite.
        """
        if name not in self.values:
            raise UserError(
                f"{self.path} has no tensor {name} (besides what was read, it has "
                f"{_listed(self.values)}): it is incomplete, or of another format."
            )
        tensor = self.values.pop(name)
        self._check(name, tensor, shape)
        # A copy: what safetensors gives may still be the file, which others may write to.
        taken = tensor.detach().to(torch.float32, copy=True).contiguous()
        if not bool(torch.isfinite(taken).all()):
            raise UserError(
                f"{self.path}: {name} holds values that are not finite numbers in float32. The "
                "autoencoder diverged or the file is damaged: take another checkpoint."
            )
        return taken

    def _check(self, name: str, tensor: Any, shape: tuple[int | None, ...]) -> None:
        if isinstance(tensor, Tensor):
            vars(tensor).clear()  # a pickle may have put values in the place of methods
        if not isinstance(tensor, Tensor) or not _is_plain(tensor):
            raise UserError(f"{self.path}: {name} is not a dense tensor held by the file.")
        if tensor.dtype not in _DTYPES:
            raise UserError(
                f"{self.path}: {name} has dtype {_word(tensor.dtype)}: weights are of "
                f"{', '.join(_word(dtype) for dtype in _DTYPES)}."
            )
        fits = tensor.dim() == len(shape) and all(
            size == wanted or (wanted is None and size > 0)
            for size, wanted in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise UserError(
                f"{self.path}: {name} has shape {list(tensor.shape)}, not [{wanted}], as the rest "
                "of the folder has it. It is of another format, or damaged."
            )

    def refuse_rest(self, format_name: str, but: Collection[str] = ()) -> None:
        """What nobody took would change the result if it were dropped: say so instead."""
        rest = sorted(set(self.values) - set(but))
        if rest:
            raise UserError(
                f"{self.path} holds {_listed(rest)}, which the {format_name} layout read here "
                "has no use for: it is of an architecture that cannot be read."
            )


def read_safetensors(path: Path) -> Tensors:
    """Raises `UserError` for what the format's library does not take."""
    try:
        return Tensors(path, dict(load_file(path)))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error


def read_pickled(path: Path) -> Tensors:
    """The state dict in a `.pt` file, of either container (zip or legacy); no code of it is run.

    Raises:
        UserError: it holds anything but tensors and plain values, or is damaged.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    # A crafted file can make the restricted unpickler fail in any way; each is a refusal.
    except Exception as error:
        raise UserError(
            f"{path} is refused: it is damaged, or holds more than tensors and plain values, which "
            f"could run code if it were loaded ({_first_line(error)}). Ask for safetensors instead."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{path} holds no state dict but {type(found).__name__}.")
    return Tensors(path, dict(found))


def _is_plain(tensor: Tensor) -> bool:
    """Whether the file holds a value for each element: not sparse, not quantized, not on no device,
    not one number that pretends to be a matrix."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _listed(names: Collection[str], most: int = 12) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "") or "nothing"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]
