"""Memory of one process that trains several runs by turns."""

from __future__ import annotations

from collections.abc import Sequence

from scaling.budget.memory import CUDA_HOST_BYTES, host_bytes, memory_parts, rank_bytes
from scaling.budget.shape import Shape

OF_A_STEP = ("batch", "residuals", "dense code", "active pairs", "exchange", "AuxK", "tiles")
"""What a step takes and gives back before another run's: the largest is counted, once. All else is
each run's own for as long as it lasts, its checkpoints as if all were written at once."""


def together_bytes(shapes: Sequence[Shape]) -> int:
    """Peak memory on the device they compute on. For one shape, `rank_bytes`."""
    parts = [memory_parts(shape) for shape in shapes]
    process = max(part["process"] for part in parts)
    kept = sum(_but(part, (*OF_A_STEP, "process")) for part in parts)
    passing = max(sum(part.get(name, 0) for name in OF_A_STEP) for part in parts)
    return max(process + kept + passing, *(rank_bytes(shape) for shape in shapes))


def together_host_bytes(shapes: Sequence[Shape]) -> int:
    """Peak memory of its host. For one shape, `host_bytes`."""
    if all(shape.device == "cpu" for shape in shapes):
        return together_bytes(shapes)
    return CUDA_HOST_BYTES + sum(host_bytes(shape) - CUDA_HOST_BYTES for shape in shapes)


def _but(parts: dict[str, int], names: Sequence[str]) -> int:
    return sum(size for name, size in parts.items() if name not in names)
