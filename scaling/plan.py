"""A run with every number settled: what plan.json holds and what a worker reads.

A plan has two kinds of parts. `autoencoder`, `train`, `numerics` and the source's hashes determine
the result; hashed together they are the run's identity. `execution` says how the numbers are
computed on this machine, fixed at the first launch so that a resume repeats the same operations;
`observe` says what is written down. Neither changes the identity.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from scaling.activations.source import SourceSpec
from scaling.autoencoder_plan import AutoencoderPlan, but_defaults
from scaling.storage.hashing import canonical_json, sha256_hex

SCHEMA_VERSION = 1
NUMERICS_VERSION = 1
"""Raised whenever the code's results change for the same identity."""
RUN_ID_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    steps: int
    batch_tokens: int
    lr: float
    warmup_tokens: int
    decay_fraction: float
    adam_beta1: float
    adam_beta2: float
    adam_eps: float
    clip_norm: float | None
    ema_decay: float
    seed: int
    shuffle_block: int
    on_bad_loss: str = "stop"
    spike_factor: float | None = None
    stop_fall: float | None = None
    """Of the rule that may end the run before its last step; None = there is none."""
    stop_after_tokens: int | None = None
    stop_per_doubling: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens trained on, at most where a rule may end the run: whole batches only."""
        return self.steps * self.batch_tokens


@dataclass(frozen=True, kw_only=True)
class NumericsPlan:
    precision: str
    """Dtype of weights, optimizer state and arithmetic."""
    capacity_factor: float | None = None
    """Of the approximate exchange between shards; None = exact."""
    selection_shards: int | None = None
    """How many shards select, where the result depends on that: with a capacity, which they share,
    or with bf16 operands, by which each shard chooses its own candidates."""


@dataclass(frozen=True, kw_only=True)
class MeshPlan:
    """How many processes share a run: data-parallel replicas times shards of the latents.

    Rank = replica * latent + shard, so that the shards of a replica are neighbours.
    """

    dp: int = 1
    latent: int = 1

    @property
    def world_size(self) -> int:
        return self.dp * self.latent

    def __str__(self) -> str:
        return f"dp={self.dp} latent={self.latent}"


@dataclass(frozen=True, kw_only=True)
class ExecutionPlan:
    """How this machine computes it; kept from the first launch on every resume."""

    engine: str
    kernels: str
    device: str
    threads: int
    fingerprint: str
    """Processor and library versions; where it differs on resume, bits may differ too."""
    matmul: str = "float32"
    """How the encoder's matmul is computed (scaling/kernels): of those with the same result, the
    fastest at the first launch."""
    exchange: str = "gather"
    """How shards agree on the k largest (scaling/distributed)."""
    zero_stage: int = 0
    """Of the DeepSpeed engine; 0 elsewhere."""


@dataclass(frozen=True, kw_only=True)
class ObservePlan:
    """What is written down, and how often, in steps."""

    log_every_steps: int
    eval_every_steps: int | None
    checkpoint_every_steps: int
    keep_checkpoints: int
    eval_batch_tokens: int
    profile: bool


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    sweep_name: str
    tokens_requested: int
    autoencoder: AutoencoderPlan
    train: TrainPlan
    numerics: NumericsPlan
    source: SourceSpec
    execution: ExecutionPlan
    observe: ObservePlan
    config: dict[str, Any]
    """The user's words, complete."""
    retries: int
    lease_timeout_s: float
    estimated_memory_bytes: int
    """Of all its processes on this machine."""
    estimated_s: float | None = None
    mesh: MeshPlan = MeshPlan()
    collective_timeout_s: float = 600.0

    @property
    def identity(self) -> dict[str, Any]:
        """All that determines the result, and nothing else."""
        return {
            "autoencoder": self.autoencoder.identity,
            "train": but_defaults(asdict(self.train), _LATER_TRAIN_KEYS),
            "numerics": but_defaults(asdict(self.numerics), _LATER_NUMERICS_KEYS),
            "activations": self.source.content_hash,
            "eval": self.source.eval_hash,
            "numerics_version": NUMERICS_VERSION,
        }

    @property
    def run_id(self) -> str:
        """First 12 hex digits of the sha256 of the identity's canonical JSON."""
        return sha256_hex(canonical_json(self.identity))[:RUN_ID_DIGITS]

    @property
    def tokens(self) -> int:
        return self.train.tokens

    @property
    def world_size(self) -> int:
        """Processes that share it."""
        return self.mesh.world_size

    @property
    def title(self) -> str:
        """For people: "n=4096 k=16 D=500k"."""
        ae = self.autoencoder
        sparsity = f"k={ae.k}" if ae.k is not None else f"lambda={ae.penalty:g}"
        if (target := ae.options.get("target_l0")) is not None:
            sparsity += f" L0={target:g}"
        return f"{ae.title} {sparsity} D={short(self.tokens)}"

    def with_estimate(self, seconds: float) -> RunPlan:
        return replace(self, estimated_s=seconds)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.run_id,
            "title": self.title,
            "identity": self.identity,
            **asdict(self),
            "source": self.source.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunPlan:
        """Read a plan back. ValueError where its run_id is not its own contents' (edited by hand,
        or written under other numerics)."""
        plan = cls(
            **{key: data[key] for key in _PLAIN_FIELDS},
            mesh=MeshPlan(**data.get("mesh", {})),
            collective_timeout_s=data.get("collective_timeout_s", 600.0),
            autoencoder=AutoencoderPlan(**data["autoencoder"]),
            train=TrainPlan(**data["train"]),
            numerics=NumericsPlan(**data["numerics"]),
            source=SourceSpec.from_json(data["source"]),
            execution=ExecutionPlan(**data["execution"]),
            observe=ObservePlan(**data["observe"]),
        )
        if plan.run_id != data["run_id"]:
            raise ValueError(
                f"plan of run {data['run_id']} describes run {plan.run_id}: it was edited, or "
                f"numerics_version moved on (now {NUMERICS_VERSION}); delete the run's folder to "
                "plan it anew"
            )
        return plan


_PLAIN_FIELDS = (
    "sweep_name",
    "tokens_requested",
    "config",
    "retries",
    "lease_timeout_s",
    "estimated_memory_bytes",
    "estimated_s",
)


_LATER_TRAIN_KEYS = {
    "on_bad_loss": "stop",
    "spike_factor": None,
    "stop_fall": None,
    "stop_after_tokens": None,
    "stop_per_doubling": None,
}
_LATER_NUMERICS_KEYS = {"capacity_factor": None, "selection_shards": None}
"""Keys younger than some records, with the value that those records had without saying so."""


def short(count: int) -> str:
    """A count for people: 500k, 1M, 131k."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= 0.9995 * size:  # what would round to 1 of the unit, as 999,936 does to 1M
            return f"{count / size:.3g}{unit}"
    return str(count)
