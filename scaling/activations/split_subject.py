"""The whole subject model, cut at a layer: what comes to it, and what it makes of another residual.

Shapes: C contexts in a batch, T tokens per context, D = d_model, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scaling.activations.readout import Readout
from scaling.activations.subject import find_blocks, load_model
from scaling.errors import UserError


class SplitSubject:
    """A causal LM below and above "after layer L" (the output of block L, 1-based).

    `logits(ids, residual(ids))` are the model's own logits. The part above runs alone, so that many
    substitutions for one text cost no more than the blocks they can change. Gradients flow through
    `logits` where the residual asks for them; the weights have none.
    """

    def __init__(self, folder: Path, *, layer: int, dtype: str, device: str) -> None:
        self._model = load_model(folder, dtype).eval().requires_grad_(False).to(device)
        self._blocks = find_blocks(self._model)
        if not 1 <= layer <= len(self._blocks):
            raise UserError(f"layer {layer}: the subject model has {len(self._blocks)} blocks.")
        self.layer = layer
        self._device = device
        self._in_tuple = False

    @property
    def vocabulary(self) -> int:
        return int(self._model.config.get_text_config().vocab_size)  # type: ignore[union-attr]

    @property
    def padding(self) -> int:
        """A token that stands for no text: the model's padding, begin or end, else token 0."""
        config = self._model.config.get_text_config()  # type: ignore[union-attr]
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            token = getattr(config, name, None)
            if isinstance(token, list):
                token = token[0]
            if token is not None and 0 <= token < self.vocabulary:
                return int(token)
        return 0

    @torch.no_grad()
    def residual(self, ids_CT: Tensor) -> Tensor:
        """The residual stream after the layer, [C, T, D], in the model's dtype, on its device."""
        caught: list[Tensor] = []

        def catch(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            self._in_tuple = isinstance(output, tuple)
            caught.append(output[0] if self._in_tuple else output)
            raise _ReachedLayer

        handle = self._blocks[self.layer - 1].register_forward_hook(catch)
        try:
            self._run(ids_CT)
        except _ReachedLayer:
            return caught[0]
        finally:
            handle.remove()
        raise RuntimeError("the forward pass never reached the layer")

    def logits(self, ids_CT: Tensor, residual_CTD: Tensor, last: int = 0) -> Tensor:
        """Logits [C, T, V] in float32, with the residual stream after the layer replaced; of the
        last `last` positions only, where that is not 0."""
        x_CTD = residual_CTD.to(self._device, self._model.dtype)  # type: ignore[arg-type]
        with _skipped(self._blocks[: self.layer], x_CTD, in_tuple=self._in_tuple):
            if not last:
                return self._run(ids_CT).logits.float()
            return self._run(ids_CT, logits_to_keep=last).logits.float()

    def unembedding(self) -> Tensor:
        """Rows of the output embedding, [V, D]: the final norm comes before it."""
        return self._model.get_output_embeddings().weight  # type: ignore[operator]

    def readout(self) -> Readout:
        """What makes logits of the residual stream after the last block."""
        return Readout(self._model, self._blocks)

    def _run(self, ids_CT: Tensor, **more: Any) -> Any:
        return self._model(input_ids=ids_CT.to(self._device), use_cache=False, **more)


class _ReachedLayer(Exception):
    """A way out of the forward pass, not a fault."""


@contextmanager
def _skipped(blocks: nn.ModuleList, x_CTD: Tensor, *, in_tuple: bool) -> Iterator[None]:
    """Let the blocks compute nothing and the last of them give `x_CTD`. The modules stay, since a
    model may ask them how they attend."""
    *through, last = blocks
    passes: list[tuple[nn.Module, Callable[..., Any]]] = [
        *((block, _passed_through(in_tuple=in_tuple)) for block in through),
        (last, lambda *args, **kwargs: (x_CTD,) if in_tuple else x_CTD),
    ]
    for block, forward in passes:
        block.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block, _ in passes:
            del block.forward  # the class's own again


def _passed_through(*, in_tuple: bool) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        x_CTD = args[0] if args else kwargs["hidden_states"]
        return (x_CTD,) if in_tuple else x_CTD

    return forward
