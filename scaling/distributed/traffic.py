"""What the ranks send each other: counted where it is sent, in the units of the budget."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from torch import Tensor


class Exchange(NamedTuple):
    """A kind of collective."""

    axis: str
    operation: str
    """all_reduce, all_gather or swap."""
    purpose: str


class Traffic:
    """Calls and payload of one rank since the last `reset`.

    The payload of a call is the tensor that the rank gives; what a ring or a pair then sends is
    `scaling.budget`'s to say.
    """

    def __init__(self) -> None:
        self.calls: Counter[Exchange] = Counter()
        self.payload_bytes: Counter[Exchange] = Counter()

    def count(self, exchange: Exchange, tensor: Tensor) -> None:
        self.calls[exchange] += 1
        self.payload_bytes[exchange] += tensor.numel() * tensor.element_size()

    def reset(self) -> None:
        self.calls.clear()
        self.payload_bytes.clear()
