"""Every key a user may set: the schema of one run, checked by Hydra when it composes.

These are the user's words. `scaling.sweep.planner` turns them into a frozen `RunPlan`, in which all
derived numbers are settled; nothing writes to a config after that.

Units are in the names: `_tokens` counts activation vectors (one token, one vector), `_s` seconds,
`_hours` hours. A key that changes the result of a run is part of the run's identity; the others
(where it runs, how it is logged) are not. docs/records.md lists which is which.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scaling.autoencoder_config import ARCHITECTURES, AutoencoderConfig
from scaling.choices import (
    DeviceName,
    EngineName,
    ExchangeName,
    KernelsName,
    LoggerName,
    ModelDtype,
    Normalization,
    Precision,
    StoreDtype,
)
from scaling.errors import UserError
from scaling.launcher_config import (
    DeepSpeedLauncherConfig,
    LauncherConfig,
    LocalLauncherConfig,
    SlurmLauncherConfig,
)
from scaling.sweep_config import SweepConfig, register_resolvers, with_points
from scaling.train_config import TrainConfig


@dataclass(kw_only=True)
class ActivationsConfig:
    """Where training vectors come from. Identity: the hash of their content, not these keys."""


@dataclass(kw_only=True)
class PlantedConfig(ActivationsConfig):
    """Sparse non-negative combinations of a known dictionary, made on the fly."""

    max_tokens: int = MISSING
    """Planted vectors are unlimited: kept for its place beside the other sources, and ignored."""
    eval_tokens: int = MISSING
    """Held-out vectors, the same for every run."""
    d_model: int = 64
    n_true: int = 256
    """Planted unit directions."""
    k_true: int = 8
    """Directions active in each vector."""
    frequency_exponent: float = 0.5
    """Direction i is drawn with weight (i + 1) ** -frequency_exponent."""
    noise: float = 0.05
    """Standard deviation of the Gaussian noise's norm, as a share of the signal's rms norm."""
    seed: int = 0


@dataclass(kw_only=True)
class HarvestConfig(ActivationsConfig):
    """The residual stream of a causal language model over a text, harvested once into a store."""

    max_tokens: int = MISSING
    """Training vectors to have; a run of more tokens repeats them, in counted epochs."""
    eval_tokens: int = MISSING
    """Held-out vectors, the same for every run."""
    model: str = MISSING
    """Hub name or local folder of a Hugging Face causal LM; "embedded" = the packaged model."""
    revision: str | None = None
    text: str = MISSING
    """A .txt, .jsonl or .parquet file, a folder of them, or a hub dataset; or "embedded"."""
    text_column: str = "text"
    text_split: str = "train"
    layer: int = MISSING
    """Residual stream after this many transformer blocks."""
    also_layers: list[int] = field(default_factory=list)
    """Further layers stored in the same pass, each in a store of its own."""
    context: int = 64
    """Tokens per forward pass."""
    drop_positions: int = 1
    """First positions of each context left out (attention sinks)."""
    outlier_factor: float = 5.0
    """Vectors with a norm above this multiple of the median are left out and counted."""
    normalization: Normalization = Normalization.unit_norm
    store_dtype: StoreDtype = StoreDtype.float16
    model_dtype: ModelDtype = ModelDtype.bfloat16
    eval_fraction: float = 0.08
    """Share of the documents held out, chosen by a hash of their text."""
    seed: int = 0
    """Seeds the order of contexts and the global shuffle of vectors."""
    batch_contexts: int = 16
    """Contexts per forward pass. Affects rounding, so it is part of the content's identity."""
    processes: int | None = None
    """Harvesting processes; null = one per core (one per GPU)."""
    stream: bool = False
    """Make training vectors as training goes instead of storing them (docs/activations.md)."""
    buffer_tokens: int = 65_536
    """With stream: vectors made, shuffled and given out together. Identity."""


@dataclass(kw_only=True)
class StoreConfig(ActivationsConfig):
    """A store that exists already, by folder."""

    path: str = MISSING
    max_tokens: int | None = None
    """Null = everything in the store."""
    eval_tokens: int | None = None
    """Null = everything held out in the store."""


@dataclass(kw_only=True)
class NumericsConfig:
    """Dtypes and approximations. Every field is part of the run's identity."""

    precision: Precision = Precision.float32


@dataclass(kw_only=True)
class EvaluationConfig:
    every_tokens: int | None = None
    """Evaluate during training too; null = at the end only."""
    batch_tokens: int = 2048


@dataclass(kw_only=True)
class MeshConfig:
    dp: int = 1
    """Data-parallel replicas."""
    latent: int = 1
    """Shards of the latents."""
    exchange: ExchangeName = ExchangeName.auto
    """How shards agree on the k largest; auto = fewest predicted bytes. All are exact."""
    capacity_factor: float | None = None
    """Null = exact. Else each shard offers only ceil(k * this / shards) latents per token, as the
    paper's 2: part of the run's identity, with mesh.latent; the share lost is logged."""
    zero_stage: int = 1
    """DeepSpeed's ZeRO stage over dp: 1 shards optimizer states, 2 gradients too."""


@dataclass(kw_only=True)
class LoggerConfig:
    name: LoggerName = LoggerName.jsonl
    project: str = "sae-scaling"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    every_tokens: int | None = None
    """Between rows of metrics.jsonl; null = a hundredth of the run."""


@dataclass(kw_only=True)
class CheckpointConfig:
    every_tokens: int | None = None
    """Null = a tenth of the run."""
    keep: int = 2


@dataclass(kw_only=True)
class DebugConfig:
    profile: bool = False
    """Write a torch profiler trace of a few steps into the run's folder."""


@dataclass(kw_only=True)
class RunConfig:
    """One run, as the user words it."""

    autoencoder: AutoencoderConfig = MISSING
    activations: ActivationsConfig = MISSING
    train: TrainConfig = field(default_factory=TrainConfig)
    numerics: NumericsConfig = field(default_factory=NumericsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    engine: EngineName = EngineName.auto
    kernels: KernelsName = KernelsName.auto
    device: DeviceName = DeviceName.auto
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    launcher: LauncherConfig = MISSING
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    runs_dir: str = "runs"
    data_dir: str = "data"
    """Harvested stores and converted subject models, shared by all sweeps."""
    sweep_name: str = "default"
    dry_run: bool = False


def register() -> None:
    """Put the schemas into Hydra's store, where conf/*.yaml name them in their defaults."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    for name, node in ARCHITECTURES.items():
        store.store(group="autoencoder", name=f"{name}_schema", node=node)
    store.store(group="activations", name="planted_schema", node=PlantedConfig)
    store.store(group="activations", name="harvest_schema", node=HarvestConfig)
    store.store(group="activations", name="store_schema", node=StoreConfig)
    store.store(group="launcher", name="local_schema", node=LocalLauncherConfig)
    store.store(group="launcher", name="deepspeed_schema", node=DeepSpeedLauncherConfig)
    store.store(group="launcher", name="slurm_schema", node=SlurmLauncherConfig)
    register_resolvers()


_OF_A_RESOLVER = re.compile(r"^\w+ raised while resolving interpolation: ")


def to_run_configs(composed: DictConfig) -> list[RunConfig]:
    """The typed configs of what was composed: one, or one for each cell of its `sweep.points`.

    Raises:
        UserError: as `to_run_config`.
    """
    return [to_run_config(point) for point in with_points(composed)]


def to_run_config(composed: DictConfig) -> RunConfig:
    """The typed config of one composed point.

    Raises:
        UserError: a value is missing, or an interpolation leads nowhere.
    """
    try:
        point = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        reason = _OF_A_RESOLVER.sub("", str(error).splitlines()[0])
        raise UserError(f"{key} has no usable value: {reason}. Set {key}=VALUE.") from error
    assert isinstance(point, RunConfig)
    if added := list(_undeclared(point)):
        # Hydra lets +KEY add anything anywhere; nobody would read it.
        raise UserError(f"{', '.join(added)} is no key of this configuration. Leave it out.")
    return point


def _undeclared(config: object, prefix: str = "") -> Iterator[str]:
    """Full names of attributes that no schema declares."""
    declared = {field.name for field in fields(config)}  # type: ignore[arg-type]
    for name, value in vars(config).items():
        if name not in declared:
            yield f"{prefix}{name}"
        elif is_dataclass(value):
            yield from _undeclared(value, f"{prefix}{name}.")
