"""Memory of one rank by part. Estimates of a peak: all parts are counted as if held at once."""

from __future__ import annotations

from scaling.budget.counts import INIT_SAMPLE_TOKENS
from scaling.budget.shape import Shape

PRE_ACTIVATION_TILE_BYTES = 32 * 2**20
GPU_TILE_BYTES = 2**29
"""Largest temporary of a GPU operation (scaling/kernels/gpu/tuning.py)."""
PROCESS_BYTES = 550 * 2**20
"""Interpreter, torch and its libraries, resident, and what the allocator keeps in hand."""
CUDA_HOST_BYTES = 3 * 2**30
"""A process that holds a CUDA context: its libraries, and pinned buffers."""
CUDA_CONTEXT_BYTES = 2 * 2**30
"""On the GPU: context, cuBLAS workspaces, NCCL's channels. An allowance, not measured."""
DEEPSPEED_BUCKET_VALUES = 500_000_000
"""DeepSpeed's reduce_bucket_size: gradients are copied there and summed together."""


def memory_parts(shape: Shape) -> dict[str, int]:
    """Bytes of one rank on the device it computes on, by part."""
    parts = {
        **_state(shape),
        **_deepspeed(shape),
        "shadow copies": shadow_bytes(shape),
        "batch": 2 * _batch_bytes(shape),
        "residuals": 6 * _batch_bytes(shape),
        "dense code": _dense_bytes(shape),
        "active pairs": _pair_bytes(shape, shape.local_k),
        "exchange": _exchange_bytes(shape, shape.k, shape.n_local),
        "AuxK": _auxiliary_bytes(shape),
        "tiles": _tile_bytes(shape),
        "checkpoint": _snapshot_bytes(shape),
        "process": CUDA_CONTEXT_BYTES if shape.device == "cuda" else PROCESS_BYTES,
    }
    return {name: size for name, size in parts.items() if size}


def rank_bytes(shape: Shape) -> int:
    """Peak memory of one rank on its device.

    Memory-mapped activations are not counted: the system drops them when it needs the room (a
    measured peak includes them).
    """
    return _but_no_less(memory_parts(shape), shape)


def host_bytes(shape: Shape) -> int:
    """Peak memory of one rank on its host: all it has, or what a GPU leaves to the processor."""
    if shape.device == "cpu":
        return rank_bytes(shape)
    return CUDA_HOST_BYTES + max(_written_bytes(shape), _start_bytes(shape))


def _snapshot_bytes(shape: Shape) -> int:
    """Weights, both moments and the average of all local rows, copied so that training may go on;
    in main memory also the part of that copy which this rank writes."""
    copied = shape.dp > 1 and shape.device == "cpu"
    return _checkpointed_bytes(shape) + (_written_bytes(shape) if copied else 0)


def _written_bytes(shape: Shape) -> int:
    """A replica's share of its shard's rows."""
    return -(-_checkpointed_bytes(shape) // shape.dp)


def _checkpointed_bytes(shape: Shape) -> int:
    return (3 + shape.ema) * shape.local_params * shape.value_bytes


def shadow_bytes(shape: Shape) -> int:
    """Low-precision copies that the kernels keep of the weights, or make for one operation."""
    matrix = 2 * shape.n_local * shape.d_model
    if shape.device == "cpu":
        return matrix  # of the encoder, for the selection
    if shape.operand_bytes != 2:
        return 0
    one_operation = matrix if shape.engine != "fused" or shape.latent > 1 else 0
    return one_operation + (2 * matrix if shape.engine == "fused" else 0)


def _state(shape: Shape) -> dict[str, int]:
    one = shape.local_params * shape.value_bytes
    return {
        "weights": one,
        "gradients": 0 if shape.engine == "fused" else one,
        "Adam moments": 2 * -(-one // shape.partitions),
        "average": one * shape.ema,
    }


def _deepspeed(shape: Shape) -> dict[str, int]:
    """What ZeRO keeps besides: its part of master weights and of reduced gradients (twice, for a
    moment), and buckets of gradients on their way."""
    if shape.engine != "deepspeed" or not shape.zero_stage:
        return {}
    part = -(-shape.local_params // shape.partitions)
    # On a GPU one fills while the other is summed; in main memory only what is touched is there.
    in_main_memory = min(DEEPSPEED_BUCKET_VALUES, shape.local_params)
    values = in_main_memory if shape.device == "cpu" else 2 * DEEPSPEED_BUCKET_VALUES
    return {
        "ZeRO partition": 3 * part * shape.value_bytes,
        "buckets": values * shape.value_bytes,
    }


def _batch_bytes(shape: Shape) -> int:
    return shape.local_tokens * shape.d_model * shape.value_bytes


def _pair_bytes(shape: Shape, k_local: int) -> int:
    """Values, their gradients, ids, and the same sorted by latent."""
    return shape.local_tokens * k_local * (4 * shape.value_bytes + 2 * 8)


def _dense_bytes(shape: Shape) -> int:
    """Pre-activations, values, their gradients, and the masks and products in between: measured,
    3.5 such tensors of a ReLU autoencoder and 7 of a gated one."""
    return 7 * shape.local_tokens * shape.n_local * shape.value_bytes * shape.dense


def _exchange_bytes(shape: Shape, k: int, n_local: int) -> int:
    """What the other shards offer, for one batch."""
    if shape.latent == 1 or not k:
        return 0
    if shape.exchange == "butterfly" and shape.capacity_factor is None:
        return shape.local_tokens * 4 * k * (shape.value_bytes + 8)  # two lists, merged and sorted
    offered = shape.offered(k, n_local)
    # Gathered, laid out by token, and compared with the k-th.
    return 3 * shape.latent * shape.local_tokens * offered * shape.value_bytes


def _auxiliary_bytes(shape: Shape) -> int:
    """Rows of the dead latents with their gradients, codes, target and reconstruction."""
    dead = shape.local_dead
    if not dead:
        return 0
    k_local = min(shape.k_aux, dead)
    rows = 4 * dead * shape.d_model * shape.value_bytes
    exchange = _exchange_bytes(shape, shape.k_aux, dead)
    return rows + _pair_bytes(shape, k_local) + 3 * _batch_bytes(shape) + exchange


def _tile_bytes(shape: Shape) -> int:
    """Tiles of scores, and the candidates of a tile of tokens."""
    if shape.device == "cuda":
        return 2 * GPU_TILE_BYTES
    tile_tokens = min(shape.local_tokens, 1024 * shape.threads)
    tiles = max(2 * PRE_ACTIVATION_TILE_BYTES, 6 * 1024 * tile_tokens)
    return tiles + 8 * (8 * shape.k + 256) * tile_tokens


def _start_bytes(shape: Shape) -> int:
    """The sample from which b_pre starts, with its temporaries: before anything else is there."""
    return 4 * INIT_SAMPLE_TOKENS * shape.d_model * 4


def _but_no_less(parts: dict[str, int], shape: Shape) -> int:
    """The parts, or on CPU what the start takes where that is more."""
    start = _start_bytes(shape) + PROCESS_BYTES if shape.device == "cpu" else 0
    return max(sum(parts.values()), start)
