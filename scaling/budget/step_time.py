"""How long a step would take on a machine: arithmetic from named rates, nothing is run.

The model "rings and rooflines": products at a measured share of the peak rate, everything else at
a measured share of the memory's rate, one after the other; a collective takes its hops times the
latency of one, and the bytes its ring sends over the slowest link of the ring. Ranks of a node
share nothing but the network: a ring with g ranks in each node has g adapters to leave it by.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

from scaling.budget.communication import Transfer, axis_size, transfers
from scaling.budget.hardware import Hardware
from scaling.budget.shape import Shape

MODEL = "rings and rooflines"
DENSE_BELOW = {"cuda": 128, "cpu": 10}
"""Dead latents per k_aux below which AuxK is computed by dense products (scaling/kernels)."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Predicted seconds of one step."""

    compute_s: dict[str, float]
    """By phase."""
    transfer_s: list[tuple[Transfer, float]]
    hidden_s: float
    """Of the gradients' exchange, behind the backward pass."""

    @property
    def total_s(self) -> float:
        exchanged_s = sum(seconds for _, seconds in self.transfer_s)
        return sum(self.compute_s.values()) + exchanged_s - self.hidden_s

    @property
    def by_cause_s(self) -> dict[str, float]:
        """Seconds by phase and by collective, largest first."""
        causes = dict(self.compute_s)
        for transfer, seconds in self.transfer_s:
            cause = f"{transfer.purpose} over {transfer.axis}"
            causes[cause] = causes.get(cause, 0.0) + seconds
        return dict(sorted(causes.items(), key=lambda item: -item[1]))


def predict(shape: Shape, hardware: Hardware, *, overlap: float = 0.0) -> StepTime:
    """`overlap`: share of the gradients' exchange that runs beside the passes over pairs."""
    compute_s = compute_seconds(shape, hardware)
    transfer_s = [(t, transfer_seconds(t, shape, hardware)) for t in transfers(shape)]
    gradients_s = sum(seconds for t, seconds in transfer_s if _is_gradient(t))
    return StepTime(
        compute_s=compute_s,
        transfer_s=transfer_s,
        hidden_s=min(overlap * gradients_s, compute_s["tokens and latents"]),
    )


def _is_gradient(transfer: Transfer) -> bool:
    return transfer.axis == "dp" and "gradient" in transfer.purpose


def encoder_flops(shape: Shape) -> float:
    """The one product of a rank that touches all its latents."""
    return 2.0 * shape.local_tokens * shape.n_local * shape.d_model


def auxiliary_flops(shape: Shape) -> float:
    """Five products over the dead latents where they are few, else one and four sparse passes."""
    dead, k_aux = shape.local_dead, min(shape.k_aux, shape.local_dead)
    if not dead:
        return 0.0
    one = 2.0 * shape.local_tokens * shape.d_model
    if dead <= DENSE_BELOW[shape.device] * k_aux:
        return 5 * one * dead
    return one * (dead + 4 * DENSE_BELOW[shape.device] * k_aux)


def sparse_flops(shape: Shape) -> float:
    """A rank's share of the four passes over active pairs."""
    return 8.0 * shape.pairs * shape.d_model


def pair_traffic_bytes(shape: Shape) -> float:
    """Rows read for the pairs, and the batch with what is made of it.

    The decoder's are read once (by autograd or over shards: twice), those of the sums of gradients
    twice.
    """
    visits = 3 if shape.engine == "fused" and shape.latent == 1 else 4
    row_bytes = shape.operand_bytes if shape.device == "cuda" else shape.value_bytes
    gathered = visits * shape.pairs * shape.d_model * row_bytes
    return gathered + 2 * shape.local_tokens * shape.d_model * shape.value_bytes


def optimizer_traffic_bytes(shape: Shape) -> float:
    """Weights and moments read and written once; the fused engine needs no more than that.

    Autograd writes gradients and passes over matrices again: projection and unit rows of the
    decoder, norm, Adam, average, and copies in and out of buckets for DeepSpeed.
    """
    params, value_bytes = shape.local_params, shape.value_bytes
    low = 2 if shape.operand_bytes == 2 or shape.device == "cpu" else 0
    if shape.engine == "fused":
        again = 2 * shape.clip  # clipping sums all gradients before the update
        return params * (value_bytes * (6 + 2 * shape.ema + again) + low)
    passes = 1 + 1.5 + 1.5 + shape.clip + 3 * shape.ema  # write, project, unit rows, norm, average
    adam = 7 / shape.partitions
    copies = 4 + 4 / shape.partitions if shape.engine == "deepspeed" else 0
    renewed_copies = 3 * (value_bytes + low) / 2 if low else 0
    return params * (value_bytes * (passes + adam + copies) + renewed_copies)


def compute_seconds(shape: Shape, hardware: Hardware) -> dict[str, float]:
    """By phase, for one rank."""
    moved_per_s = hardware.memory_share * hardware.memory_bytes_per_s
    phases = {
        "encoder": encoder_flops(shape) / hardware.encoder_flops_per_s(shape.precision),
        "tokens and latents": pair_traffic_bytes(shape) / moved_per_s,
        "AuxK": auxiliary_flops(shape) / hardware.auxiliary_flops_per_s(shape.precision),
        "optimizer": optimizer_traffic_bytes(shape) / moved_per_s,
    }
    return {name: seconds for name, seconds in phases.items() if seconds}


def transfer_seconds(transfer: Transfer, shape: Shape, hardware: Hardware) -> float:
    """Hops times latency, and bytes over the slowest link of the ring."""
    size = axis_size(shape, transfer.axis)
    within, spans = _places(transfer.axis, shape, hardware)
    rates = [hardware.node_share * hardware.node_bytes_per_s] if within > 1 else []
    if spans:
        rates.append(within * hardware.network_share * hardware.network_bytes_per_s)
    latency_s = transfer.times * _latency_s(transfer.operation, size, within, hardware)
    return latency_s + transfer.sent_bytes(size) / min(rates)


def _places(axis: str, shape: Shape, hardware: Hardware) -> tuple[int, bool]:
    """(ranks of one group of the axis in a node, whether the group spans nodes).

    Shards of a replica are neighbours; replicas are `latent` ranks apart.
    """
    stride = 1 if axis == "latent" else shape.latent
    size = axis_size(shape, axis)
    within = min(size, max(1, hardware.ranks_per_node // stride))
    return within, within < size


def _latency_s(operation: str, size: int, within: int, hardware: Hardware) -> float:
    """Of all hops of a collective: sums go up and down a tree, gathered pieces round the ring."""
    node_s, network_s = hardware.node_latency_s, hardware.network_latency_s
    nodes = size / within
    match operation:
        case "all_reduce":
            return 2 * (ceil(log2(within)) * node_s + ceil(log2(nodes)) * network_s)
        case "swap":
            return network_s if nodes > 1 else node_s
    per_hop_s = ((within - 1) * node_s + network_s) / within if nodes > 1 else node_s
    return (size - 1) * per_hop_s
