"""Bytes that a step moves between ranks: one line per collective, with what it is for.

A tested statement: tests/distributed/test_bytes.py counts what real processes send. Payloads are
what one rank hands in; `sent_bytes` is what it sends under ring algorithms, whatever a library
really does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from scaling.budget.exchange import ID_BYTES, butterfly_widths, redone_share
from scaling.budget.shape import Shape

COUNT_BYTES = 8
FLAG_BYTES = 1
SCALAR_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One collective of a step."""

    axis: str
    operation: str
    purpose: str
    """As the program's own counter and its errors call it."""
    payload_bytes: float
    times: int = 1
    note: str = ""
    """Which of several with this purpose."""

    def sent_bytes(self, size: int) -> float:
        """What a rank of an axis of `size` ranks sends, per step."""
        return self.times * ring_factor(self.operation, size) * self.payload_bytes


def ring_factor(operation: str, size: int) -> float:
    """Bytes sent per rank, in units of what it hands in."""
    match operation:
        case "all_reduce":
            return 2 * (size - 1) / size
        case "all_gather":
            return size - 1
        case "reduce_scatter":
            return (size - 1) / size
        case "swap":
            return 1.0 if size > 1 else 0.0
    raise ValueError(f"no such operation: {operation}")


def transfers(shape: Shape) -> list[Transfer]:
    """All collectives of one training step; none where an axis has one rank.

    Steps that are logged exchange a few scalars more.
    """
    found: list[Transfer] = []
    if shape.latent > 1:
        found += _between_shards(shape)
    if shape.dp > 1:
        found += _between_replicas(shape)
    return found


def sent_bytes(shape: Shape, axis: str) -> float:
    """What a rank sends along an axis, per step."""
    size = axis_size(shape, axis)
    return sum(t.sent_bytes(size) for t in transfers(shape) if t.axis == axis)


def axis_size(shape: Shape, axis: str) -> int:
    return {"dp": shape.dp, "latent": shape.latent}[axis]


def _between_shards(shape: Shape) -> list[Transfer]:
    summed = partial(Transfer, axis="latent", operation="all_reduce")
    d_bytes = shape.d_model * shape.value_bytes
    recon = summed(purpose="reconstruction", payload_bytes=shape.local_tokens * d_bytes)
    found = [*_selection(shape, shape.k, shape.n_local), recon]
    counts = Transfer(
        axis="latent", operation="all_gather", purpose="dead counts", payload_bytes=COUNT_BYTES
    )
    found.append(counts)
    if shape.local_dead:
        found += _selection(shape, shape.k_aux, shape.local_dead, note="AuxK")
        found.append(replace(recon, note="AuxK"))
    if shape.engine == "fused":
        # Clipping measures all gradients before the update, which sums them up again.
        times, both = 1 + shape.clip, d_bytes + shape.value_bytes
        return [*found, summed(purpose="gradient summary", payload_bytes=both, times=times)]
    found.append(summed(purpose="b_pre gradient", payload_bytes=d_bytes))
    if shape.engine == "deepspeed":
        found.append(summed(purpose="DeepSpeed norm", payload_bytes=SCALAR_BYTES))
    elif shape.clip:
        found.append(summed(purpose="gradient norm", payload_bytes=shape.value_bytes))
    return found


def _selection(shape: Shape, k: int, n_local: int, note: str = "") -> list[Transfer]:
    """The shards settle which latents are the k largest of each token."""
    tokens, value_bytes = shape.local_tokens, shape.value_bytes
    gathered = partial(Transfer, axis="latent", operation="all_gather", purpose="candidates")
    offered_bytes = tokens * shape.offered(k, n_local) * value_bytes
    if shape.exchange == "butterfly" and shape.capacity_factor is None:
        return [
            Transfer(
                axis="latent",
                operation="swap",
                purpose="candidates",
                payload_bytes=tokens * width * (value_bytes + ID_BYTES),
                note=note,
            )
            for width in butterfly_widths(k, n_local, shape.latent)
        ]
    found = [gathered(payload_bytes=offered_bytes, note=note)]
    if shape.exchange == "candidates" and shape.capacity_factor is None:
        again = tokens * redone_share(k, n_local, shape.latent)
        again_bytes = again * min(k, n_local) * value_bytes
        if again:
            found.append(gathered(payload_bytes=again_bytes, note=f"{note} redone".strip()))
    return found


def _between_replicas(shape: Shape) -> list[Transfer]:
    summed = partial(Transfer, axis="dp", operation="all_reduce")
    value_bytes = shape.value_bytes
    matrix = shape.n_local * shape.d_model * value_bytes
    found = [summed(purpose="fired latents", payload_bytes=shape.n_local * FLAG_BYTES)]
    if shape.local_dead:
        d_bytes = shape.d_model * value_bytes
        found.append(summed(purpose="AuxK statistics", payload_bytes=d_bytes, note="means"))
        squares = 3 * value_bytes
        found.append(summed(purpose="AuxK statistics", payload_bytes=squares, note="squares"))
    if shape.engine != "deepspeed":
        sizes = {
            "w_enc": matrix,
            "w_dec": matrix,
            "b_enc": shape.n_local * value_bytes,
            "b_pre": shape.d_model * value_bytes,
        }
        gradients = [
            summed(purpose=f"{name} gradient", payload_bytes=size) for name, size in sizes.items()
        ]
        return [*found, *gradients]
    return [*found, *_by_deepspeed(shape)]


def _by_deepspeed(shape: Shape) -> list[Transfer]:
    """DeepSpeed sums whole buckets on all replicas, in all stages (0.19.8 with its defaults, as its
    own log of communication says); under ZeRO each replica then hands out its part."""
    summed = partial(Transfer, axis="dp", operation="all_reduce")
    gradients = shape.local_params * shape.value_bytes
    found = [summed(purpose="DeepSpeed gradients", payload_bytes=gradients)]
    if shape.partitions > 1:
        weights = -(-shape.local_params // shape.dp) * shape.value_bytes
        found.append(
            Transfer(
                axis="dp",
                operation="all_gather",
                purpose="DeepSpeed weights",
                payload_bytes=weights,
            )
        )
    return [*found, summed(purpose="DeepSpeed norm", payload_bytes=SCALAR_BYTES)]
