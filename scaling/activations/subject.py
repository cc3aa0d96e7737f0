"""The subject model: loading it, and reading its residual stream. The sole transformers import.

Shapes: C contexts in a batch, T tokens per context, D = d_model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from torch import Tensor, nn

from scaling.errors import UserError

transformers.utils.logging.disable_progress_bar()  # type: ignore[attr-defined]
_DOWNLOADS = ("*.json", "*.safetensors", "*.model", "*.txt")
"""Never pickles."""


@dataclass(frozen=True)
class ModelLocation:
    """Where a model is: a local folder, or a hub name with a revision."""

    path: str
    revision: str | None = None


class Subject:
    """A causal LM cut off after the deepest layer that is wanted.

    The residual stream "after layer L" is the output of block L (1-based): no final norm, which is
    what the last of a model's `hidden_states` has been through.
    """

    def __init__(self, folder: Path, *, layers: Sequence[int], dtype: str, device: str) -> None:
        model = load_model(folder, dtype).eval().to(device)
        blocks = find_blocks(model)
        del blocks[max(layers) :]  # never reached
        self._model = model
        self._device = device
        self._caught: dict[int, Tensor] = {}
        for layer in layers:
            last = layer == max(layers)
            blocks[layer - 1].register_forward_hook(_catcher(self._caught, layer, stop=last))

    @torch.inference_mode()
    def residuals(self, ids_CT: Tensor) -> dict[int, Tensor]:
        """Layer to residual stream [C, T, D], in the model's dtype, on its device."""
        self._caught.clear()
        try:
            self._model(input_ids=ids_CT.to(self._device), use_cache=False)
        except _ReachedDeepestLayer:
            return dict(self._caught)
        raise RuntimeError("the forward pass never reached the wanted block")


def _catcher(caught: dict[int, Tensor], layer: int, *, stop: bool) -> Any:
    """A hook that knows no model: with one, it would keep it until the collector comes by."""

    def catch(module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs
        caught[layer] = output[0] if isinstance(output, tuple) else output
        if stop:
            raise _ReachedDeepestLayer

    return catch


class _ReachedDeepestLayer(Exception):
    """A way out of the forward pass, not a fault."""


class Tokenizer:
    """Text to token ids, without special tokens."""

    def __init__(self, folder: Path) -> None:
        with _reported(ModelLocation(str(folder)), "tokenizer"):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return encoded["input_ids"]

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Each token by itself as people read it, spaces kept."""
        return self._tokenizer.batch_decode(
            [[token] for token in ids], clean_up_tokenization_spaces=False
        )


def local_folder(location: ModelLocation) -> Path:
    """The model as a folder on this machine, downloaded from the hub if it is not one.

    Raises:
        UserError: neither a folder nor a model that the hub (or its local cache) gives.
    """
    path = Path(location.path)
    if path.is_dir():
        return path
    with _reported(location, "files"):
        return Path(
            huggingface_hub.snapshot_download(
                location.path, revision=location.revision, allow_patterns=list(_DOWNLOADS)
            )
        )


def model_shape(location: ModelLocation) -> tuple[int, int]:
    """(d_model, number of blocks), from the model's config alone.

    Raises:
        UserError: no such model.
    """
    with _reported(location, "config"):
        config = transformers.AutoConfig.from_pretrained(
            location.path, revision=location.revision
        ).get_text_config()
    return config.hidden_size, config.num_hidden_layers


def n_params(location: ModelLocation) -> int:
    """Parameters of a model, tied ones once, from its config alone: no weight is read or made.

    Raises:
        UserError: no such model.
    """
    with _reported(location, "config"):
        config = transformers.AutoConfig.from_pretrained(location.path, revision=location.revision)
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config).num_parameters()


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks of any Hugging Face causal LM: its outermost list of that length."""
    n_layers = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr]
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    }
    if not lists:
        raise UserError(
            f"activations.model: {type(model).__name__} has no list of {n_layers} blocks, so its "
            "residual stream cannot be located: choose a decoder-only transformer."
        )
    return lists[min(lists, key=lambda name: name.count("."))]


def save_tokenizer(gguf_path: Path, folder: Path) -> None:
    """Write the tokenizer inside a GGUF file as Hugging Face tokenizer files."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        gguf_path.parent, gguf_file=gguf_path.name
    )
    tokenizer.save_pretrained(folder)


def load_model(folder: Path, dtype: str) -> nn.Module:
    """The causal LM in a folder, from safetensors only, in torch's dtype of that name.

    Raises:
        UserError: it cannot be loaded.
    """
    with _reported(ModelLocation(str(folder)), "model"):
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True
        )


@contextmanager
def _reported(location: ModelLocation, part: str) -> Iterator[None]:
    """Turns the hub's and the file system's complaints into one UserError."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"activations.model={location.path!r} (activations.revision={location.revision!r}): "
            f"its {part} cannot be loaded. Give a folder with a Hugging Face causal LM "
            "(config.json, safetensors, tokenizer) or the name of one on the hub. The loader "
            f"says: {reason}"
        ) from error
