"""Is it a fair comparison? What must hold of the workers' answers, as sentences for the report."""

from __future__ import annotations

import statistics

from benchmarks.peers.contenders import Kind
from benchmarks.peers.session import Measured
from benchmarks.peers.shapes import Shape

TOLERANCE = 1e-4
"""Relative, of the reconstruction error at step 0: float32 sums in different orders, and the odd
token whose k-th and next pre-activation are nearly equal."""


def remarks(shape: Shape, found: list[Measured]) -> list[str]:
    """What a reader should know; raises where the numbers would mean nothing."""
    _same_data(found)
    trained = [m for m in found if m.kind is not Kind.floor]
    if not trained:
        return []
    for measured in trained:
        _held_dead(shape, measured)
    return [_same_reconstruction(trained), *_aux_losses(shape, trained)]


def _same_data(found: list[Measured]) -> None:
    sums = [m.ready["checksum"] for m in found]
    if max(sums) - min(sums) > 1e-6 * abs(sums[0]):
        raise SystemExit(f"the contenders did not make the same batches: sums {sums}")


def _held_dead(shape: Shape, measured: Measured) -> None:
    for when, score in (("before", measured.before), ("after", measured.after)):
        works = (score["aux_loss"] > 0) == (shape.n_dead > 0)
        if score["n_dead"] != shape.n_dead or not works:
            raise SystemExit(
                f"{measured.name}, {when} training: {score['n_dead']} latents are dead and the "
                f"AuxK loss is {score['aux_loss']}; {shape.n_dead} should be dead"
            )


def _same_reconstruction(trained: list[Measured]) -> str:
    errors = {m.name: m.before["squared_error"] for m in trained}
    middle = statistics.median(errors.values())
    worst = max(abs(error / middle - 1) for error in errors.values())
    if worst <= TOLERANCE:
        return (
            f"All start from the same weights and reconstruct the first batch with the same "
            f"squared error per token, {middle:.5g} (they differ by {worst:.0e} at most)."
        )
    listed = ", ".join(f"{name} {error:.5g}" for name, error in errors.items())
    return (
        f"**The reconstruction errors of the first batch differ**: {listed}. (A matmul in bfloat16 "
        f"may swap latents that nearly tie for the k-th place.)"
    )


def _aux_losses(shape: Shape, trained: list[Measured]) -> list[str]:
    if not shape.n_dead:
        return []
    listed = ", ".join(f"{m.name} {m.before['aux_loss']:.3g}" for m in trained)
    return [
        f"AuxK losses of the first batch, each as its package defines it (before or after its "
        f"weight, over different units): {listed}."
    ]
