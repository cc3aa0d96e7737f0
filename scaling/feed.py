"""What two runs must have in common to be trained on the same batches by one process."""

from __future__ import annotations

from typing import NamedTuple

from scaling.plan import RunPlan
from scaling.storage.hashing import canonical_json


class Feed(NamedTuple):
    """Equal for runs that see the same batches, in the same order and form, on the same device.

    It says nothing of the autoencoder, the learning rate or the number of steps: these may differ.
    """

    activations: str
    held_out: str
    batch_tokens: int
    seed: int
    shuffle_block: int
    precision: str
    device: str
    threads: int


def feed_of(plan: RunPlan) -> Feed | None:
    """None for a run that several processes share, or that DeepSpeed trains: it has its own."""
    if plan.world_size > 1 or plan.execution.engine == "deepspeed":
        return None
    source = plan.source
    return Feed(
        # Before data are there their hash is not known: then the words for them stand for it.
        activations=source.content_hash or canonical_json(plan.config["activations"]).decode(),
        held_out=source.eval_hash,
        batch_tokens=plan.train.batch_tokens,
        seed=plan.train.seed,
        shuffle_block=plan.train.shuffle_block,
        precision=plan.numerics.precision,
        device=plan.execution.device,
        threads=plan.execution.threads,
    )
