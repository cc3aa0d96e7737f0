"""From the residual stream after the last block to logits, as a linear map of directions.

Every final norm in use divides a vector by its length and multiplies channels by a gain; a layer
norm takes the mean over channels off before. At a given length it is linear, up to a bias:

    logits(x + d) - logits(x) = U (gain * C d) / length        C d = d - mean(d), or d

What gain and C are is found by trying the norm, since models store a gain as g, 1 + g or not at
all. A softcap of logits, where a model has one, is left out: it changes no order.

Shapes: D = d_model, V = vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Readout:
    """The final norm and the output embedding of a causal LM."""

    def __init__(self, model: nn.Module, blocks: nn.ModuleList) -> None:
        self.unembedding_VD: Tensor = model.get_output_embeddings().weight  # type: ignore[operator]
        self._norm = find_final_norm(model, blocks)
        d_model = self.unembedding_VD.shape[1]
        self.centers = False
        """Whether the norm takes the mean over channels off."""
        self.gain_D = torch.ones(d_model)
        """float32, on the CPU; ones where there is no final norm."""
        if self._norm is not None:
            self.centers, self.gain_D = tried(self._norm, d_model)

    @property
    def has_norm(self) -> bool:
        return self._norm is not None

    def directions(self, rows_ND: Tensor) -> Tensor:
        """gain * C d of each row, [N, D]: its product with the output embedding is logits."""
        if self.centers:
            rows_ND = rows_ND - rows_ND.mean(dim=1, keepdim=True)
        return rows_ND * self.gain_D.to(rows_ND)

    @contextmanager
    def lengths(self) -> Iterator[list[Tensor]]:
        """Collects what the norm divides by, [C, T] of each forward pass within the block."""
        seen: list[Tensor] = []

        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            del module
            x_CTD = inputs[0].float()
            if self.centers:
                x_CTD = x_CTD - x_CTD.mean(dim=-1, keepdim=True)
            seen.append(x_CTD.square().mean(dim=-1).sqrt())

        handle = None if self._norm is None else self._norm.register_forward_pre_hook(see)
        try:
            yield seen
        finally:
            if handle is not None:
                handle.remove()


@torch.no_grad()
def tried(norm: nn.Module, d_model: int) -> tuple[bool, Tensor]:
    """Whether `norm` centers, and its gain [D], float32: from what it makes of two vectors."""
    norm = copy.deepcopy(norm).to("cpu", torch.float32)
    ones_D = torch.ones(d_model)
    centers = bool(torch.allclose(norm(ones_D), norm(-ones_D)))
    gains = []
    for first in (0, 1):  # a vector of odd length has one channel at 0, to have no mean
        sign_D = ones_D.clone()
        sign_D[1::2] = -1
        if d_model % 2:
            sign_D[-1] = 0
        sign_D = sign_D.roll(first) / sign_D.square().mean().sqrt()
        moved_D = (norm(sign_D) - norm(-sign_D)) / 2  # without the bias
        gains.append(torch.where(sign_D == 0, torch.nan, moved_D / sign_D))
    return centers, torch.where(gains[0].isnan(), gains[1], gains[0])


@torch.no_grad()
def find_final_norm(model: nn.Module, blocks: nn.ModuleList) -> nn.Module | None:
    """The module whose output the output embedding reads; None where that is the last block's.

    Found by running the model on two tokens: names differ between models.
    """
    within = set(blocks.modules())
    made: list[tuple[nn.Module, int]] = []
    read: list[int] = []

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        del inputs
        if isinstance(output, Tensor):
            made.append((module, output.data_ptr()))

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        del module
        read.append(inputs[0].data_ptr())

    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    outside = [module for module in model.modules() if module not in within and module is not head]
    handles = [module.register_forward_hook(after) for module in outside]
    handles.append(head.register_forward_pre_hook(before))
    try:
        ids_CT = torch.zeros(1, 2, dtype=torch.long, device=head.weight.device)  # type: ignore[arg-type]
        model(input_ids=ids_CT, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return next((module for module, where in reversed(made) if where in read), None)
