"""Vectors with a known answer: sparse non-negative combinations of planted unit directions.

    x = sum over i in A of m_i w_i + noise,   |A| = k_true

A is drawn without replacement with weights (i + 1)^-frequency_exponent (so that direction 0 is the
most frequent), m_i is uniform on [0.5, 1.5] times a constant that makes a vector's rms norm 1 if
directions were orthogonal, w_i are random unit vectors, and the noise is Gaussian and isotropic,
its rms norm being the share `noise` of the signal's. There is no normalization per token.

Every batch is generated from (data seed, split, order seed, step): unlimited and stateless.
Shapes: B tokens, K = k_true, D = d_model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scaling.activations.source import Calibration, SourceSpec
from scaling.errors import UserError
from scaling.storage.hashing import canonical_json, sha256_hex

if TYPE_CHECKING:
    from scaling.config import PlantedConfig

GENERATOR_VERSION = 1
"""Part of the content hash: raise it when the same parameters would give other vectors."""
CALIBRATION_TOKENS = 16_384
MAX_EVAL_BYTES = 2**31
"""Of the held-out vectors with their ground truth."""
CHUNK_TOKENS = 4_096
"""Samples and the held-out set are made in chunks of this size, whatever is asked for."""
MAGNITUDE_LOW, MAGNITUDE_HIGH = 0.5, 1.5
_DICTIONARY, _SCALE, _SAMPLE, _EVAL, _TRAIN = range(5)  # independent random streams

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class PlantedParams:
    """What determines every vector (see the module's equation)."""

    d_model: int
    n_true: int
    k_true: int
    frequency_exponent: float
    noise: float
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.k_true <= self.n_true:
            raise UserError(
                f"activations.k_true={self.k_true} must lie between 1 and "
                f"activations.n_true={self.n_true}: lower k_true or plant more directions."
            )
        if self.d_model < 1 or self.noise < 0 or self.seed < 0:
            raise UserError(
                f"activations.d_model={self.d_model} must be positive, and "
                f"activations.noise={self.noise} and activations.seed={self.seed} not negative."
            )


class PlantedBatch(NamedTuple):
    """Vectors with their ground truth: x = sum_k magnitudes * dictionary[ids] + noise."""

    x_BD: Tensor
    """float32."""
    ids_BK: Tensor
    """int64, distinct within a row; indices into `PlantedSource.dictionary`."""
    magnitudes_BK: Tensor
    """float32, all positive."""
    noise_BD: Tensor
    """float32."""


class PlantedSource:
    """The planted source of the parameters in `spec`; `dictionary` holds the true directions."""

    def __init__(self, spec: SourceSpec) -> None:
        self.spec = spec
        self.params = PlantedParams(**spec.params)
        self._directions = _unit_rows(self._stream(_DICTIONARY), self.params)
        ranks = np.arange(1, self.params.n_true + 1, dtype=np.float64)
        self._weights = (ranks**-self.params.frequency_exponent).astype(np.float32)
        self._noise_sd = self._noise_sd_per_coordinate()
        self.calibration = _calibrate(self.sample(CALIBRATION_TOKENS).double())

    @property
    def dictionary(self) -> Tensor:
        """The planted directions, float32 [n_true, D] with unit rows."""
        return torch.from_numpy(self._directions)

    def train_batch(
        self,
        *,
        seed: int,
        step: int,
        batch_tokens: int,
        shuffle_block: int,
        replica: int = 0,
        replicas: int = 1,
    ) -> Tensor:
        del shuffle_block  # every vector is drawn independently already
        whole = self.train_truth(seed=seed, step=step, batch_tokens=batch_tokens).x_BD
        return whole.chunk(replicas)[replica]

    def train_truth(self, *, seed: int, step: int, batch_tokens: int) -> PlantedBatch:
        """The training batch together with its true codes."""
        return self._generate(self._stream(_TRAIN, seed, step), batch_tokens)

    def eval_batches(self, batch_tokens: int) -> Iterator[Tensor]:
        yield from self._eval.x_BD.split(batch_tokens)

    def eval_truth(self) -> PlantedBatch:
        """The whole held-out set together with its true codes."""
        return self._eval

    def sample(self, n: int) -> Tensor:
        return self._chunks(_SAMPLE, n).x_BD

    @cached_property
    def _eval(self) -> PlantedBatch:
        return self._chunks(_EVAL, self.spec.n_eval)

    def _chunks(self, stream: int, n: int) -> PlantedBatch:
        """The first n vectors of a stream; a longer request begins with the same vectors."""
        parts = [
            self._generate(self._stream(stream, index), CHUNK_TOKENS)
            for index in range(-(-n // CHUNK_TOKENS))
        ]
        return PlantedBatch(*(torch.cat(tensors)[:n] for tensors in zip(*parts, strict=True)))

    def _generate(self, rng: np.random.Generator, n: int) -> PlantedBatch:
        signal, ids, magnitudes = self._signal(rng, n)
        noise = rng.standard_normal(signal.shape, dtype=np.float32) * self._noise_sd
        arrays = (signal + noise, ids, magnitudes, noise)
        return PlantedBatch(*(torch.from_numpy(array) for array in arrays))

    def _signal(
        self, rng: np.random.Generator, n: int
    ) -> tuple[FloatArray, NDArray[np.int64], FloatArray]:
        ids = _draw_ids(rng, self._weights, n, self.params.k_true)
        magnitudes = _draw_magnitudes(rng, n, self.params.k_true)
        signal = np.zeros((n, self.params.d_model), np.float32)
        for j in range(self.params.k_true):
            signal += magnitudes[:, j : j + 1] * self._directions[ids[:, j]]
        return signal, ids, magnitudes

    def _noise_sd_per_coordinate(self) -> np.float32:
        signal, _, _ = self._signal(self._stream(_SCALE), CHUNK_TOKENS)
        rms_norm = np.sqrt(np.square(signal, dtype=np.float64).sum(1).mean())
        return np.float32(self.params.noise * rms_norm / np.sqrt(self.params.d_model))

    def _stream(self, *keys: int) -> np.random.Generator:
        return np.random.default_rng([GENERATOR_VERSION, self.params.seed, *keys])


def planted_spec(config: PlantedConfig) -> SourceSpec:
    """The spec of the planted source that `config` asks for.

    `max_tokens` is not part of it, since vectors are unlimited.

    Raises:
        UserError: for parameters that no data can have.
    """
    params = PlantedParams(
        d_model=config.d_model,
        n_true=config.n_true,
        k_true=config.k_true,
        frequency_exponent=config.frequency_exponent,
        noise=config.noise,
        seed=config.seed,
    )
    most = MAX_EVAL_BYTES // (8 * (config.d_model + config.k_true))
    if not 1 <= config.eval_tokens <= most:
        raise UserError(
            f"activations.eval_tokens={config.eval_tokens} must lie between 1 and {most}: the "
            "held-out vectors are kept in memory."
        )
    content = {"kind": "planted", "generator_version": GENERATOR_VERSION, **asdict(params)}
    return SourceSpec(
        kind="planted",
        content_hash=sha256_hex(canonical_json(content)),
        eval_hash=sha256_hex(canonical_json({**content, "n_eval": config.eval_tokens})),
        d_model=params.d_model,
        n_train=None,
        n_eval=config.eval_tokens,
        params=asdict(params),
        description=_describe(params),
    )


def _describe(params: PlantedParams) -> dict[str, Any]:
    return {
        "subject_model": "planted",
        "subject_content": None,
        "layer": None,
        "context": None,
        "normalization": "none",
        "text": None,
        "text_content": None,
        "planted": asdict(params),
    }


def _calibrate(sample_BD: Tensor) -> Calibration:
    mean = sample_BD.mean(0).float()
    return Calibration(mean, float((sample_BD - mean.double()).square().mean()))


def _unit_rows(rng: np.random.Generator, params: PlantedParams) -> FloatArray:
    rows = rng.standard_normal((params.n_true, params.d_model))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _draw_ids(rng: np.random.Generator, weights: FloatArray, n: int, k: int) -> NDArray[np.int64]:
    """k distinct ids per row, by weight, without replacement: the winners of a race whose times
    are exponential with rate w_i (Efraimidis and Spirakis 2006)."""
    times = rng.standard_exponential((n, len(weights)), dtype=np.float32) / weights
    winners = np.argpartition(times, k - 1, axis=1)[:, :k]
    return np.sort(winners, axis=1).astype(np.int64)


def _draw_magnitudes(rng: np.random.Generator, n: int, k: int) -> FloatArray:
    uniform = rng.random((n, k), dtype=np.float32)
    magnitudes = MAGNITUDE_LOW + (MAGNITUDE_HIGH - MAGNITUDE_LOW) * uniform
    low, high = MAGNITUDE_LOW, MAGNITUDE_HIGH
    mean_square = (low**2 + low * high + high**2) / 3
    return (magnitudes / np.sqrt(k * mean_square)).astype(np.float32)
