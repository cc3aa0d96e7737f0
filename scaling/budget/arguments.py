"""The command line of `python -m scaling.budget`: launch.py's keys, those that cost something."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scaling.budget.counts import power_of_two_near
from scaling.budget.exchange import EXCHANGES, choose_exchange
from scaling.budget.hardware import Hardware, load_hardware
from scaling.budget.shape import VALUE_BYTES, Shape
from scaling.errors import UserError

REQUIRED = ("autoencoder.n_latents", "activations.d_model", "autoencoder.k")
DEFAULTS = {
    "autoencoder.k_aux": "null",
    "autoencoder.aux_coef": "0.03125",
    "train.batch_tokens": "131072",
    "train.ema_decay": "0.999",
    "train.clip_norm": "null",
    "numerics.precision": "float32",
    "mesh.dp": "1",
    "mesh.latent": "1",
    "mesh.exchange": "auto",
    "mesh.capacity_factor": "null",
    "mesh.zero_stage": "1",
    "engine": "auto",
    "hardware": "h100",
    "dead_share": "0",
    "overlap": "0",
}
"""launch.py's, and three keys of this command alone: hardware, dead_share (of the latents, dead at
a time) and overlap (share of the gradients' exchange hidden behind the backward pass)."""
ENGINES = ("auto", "fused", "torch", "deepspeed")


class Asked(NamedTuple):
    """What a command line describes."""

    shape: Shape
    hardware: Hardware
    overlap: float


def parse(words: Sequence[str]) -> Asked:
    """KEY=VALUE words as a run on a machine.

    Raises:
        UserError: naming a key, its value and the remedy.
    """
    values = _Values(DEFAULTS | _split(words))
    if missing := [key for key in REQUIRED if key not in values.by_key]:
        raise UserError(
            f"{', '.join(missing)} must be given, e.g. python -m scaling.budget "
            "autoencoder.n_latents=131072 activations.d_model=768 autoencoder.k=32."
        )
    hardware = load_hardware(values.by_key["hardware"])
    shape = _shape(values, hardware)
    return Asked(shape, hardware, values.share("overlap"))


def _split(words: Sequence[str]) -> dict[str, str]:
    known, found = (*REQUIRED, *DEFAULTS), {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
            raise UserError(f"{key} is no key of scaling.budget. {hint}")
        if not equals or not value:
            raise UserError(f"{word} has no value. Write {key}=VALUE.")
        found[key] = value
    return found


def _shape(values: _Values, hardware: Hardware) -> Shape:
    n_latents, d_model = (values.count(key) for key in REQUIRED[:2])
    k, batch = values.count("autoencoder.k"), values.count("train.batch_tokens")
    dp, latent = values.count("mesh.dp"), values.count("mesh.latent")
    if k > n_latents:
        raise UserError(
            f"autoencoder.k={k} is more than autoencoder.n_latents={n_latents}. Lower it."
        )
    _check_divides("autoencoder.n_latents", n_latents, "mesh.latent", latent)
    _check_divides("train.batch_tokens", batch, "mesh.dp", dp)
    precision = values.choice("numerics.precision", tuple(VALUE_BYTES))
    engine = _engine(values.choice("engine", ENGINES), dp, precision)
    stage = values.choice("mesh.zero_stage", ("0", "1", "2"))
    exchange = values.choice("mesh.exchange", ("auto", *EXCHANGES))
    if exchange == "butterfly" and latent & (latent - 1):
        raise UserError(
            f"mesh.exchange=butterfly with mesh.latent={latent}: it needs a power of two. Use "
            "mesh.exchange=auto."
        )
    chosen = choose_exchange(k, n_latents // latent, latent) if exchange == "auto" else exchange
    return Shape(
        n_latents=n_latents,
        d_model=d_model,
        k=k,
        batch_tokens=batch,
        k_aux=_k_aux(values, d_model),
        dead_share=values.share("dead_share"),
        dp=dp,
        latent=latent,
        engine=engine,
        zero_stage=int(stage) if engine == "deepspeed" else 0,
        exchange=chosen,
        capacity_factor=values.positive_or_null("mesh.capacity_factor"),
        precision=precision,
        ema=values.number("train.ema_decay") > 0,
        clip=values.positive_or_null("train.clip_norm") is not None,
        device=hardware.device,
        threads=hardware.threads,
    )


def _k_aux(values: _Values, d_model: int) -> int:
    if not values.number("autoencoder.aux_coef"):
        return 0
    if values.by_key["autoencoder.k_aux"] == "null":
        return power_of_two_near(d_model / 2)
    return values.count("autoencoder.k_aux")


def _engine(asked: str, dp: int, precision: str) -> str:
    """As launch.py chooses it on a machine with kernels for the fused engine."""
    if asked == "fused" and dp > 1:
        raise UserError(
            f"engine=fused with mesh.dp={dp}: it trains one replica, whose latents may be sharded. "
            "Use engine=auto, or mesh.dp=1."
        )
    if asked == "deepspeed" and precision == "float64":
        raise UserError(
            "engine=deepspeed with numerics.precision=float64: DeepSpeed has no float64. Use "
            "engine=torch."
        )
    if asked != "auto":
        return asked
    if precision == "float64":
        return "torch"
    return "deepspeed" if dp > 1 else "fused"


def _check_divides(whole_key: str, whole: int, part_key: str, part: int) -> None:
    if whole % part:
        below = next(size for size in range(min(part, whole, 2**20), 0, -1) if whole % size == 0)
        raise UserError(
            f"{whole_key}={whole} is not a multiple of {part_key}={part}. Use {part_key}={below}, "
            f"or another {whole_key}."
        )


class _Values:
    """Words read as what their keys want."""

    def __init__(self, by_key: Mapping[str, str]) -> None:
        self.by_key = by_key

    def count(self, key: str) -> int:
        word = self.by_key[key]
        try:
            value = int(word)
        except ValueError:
            value = 0
        if value < 1:
            raise UserError(f"{key}={word} is not a whole number of at least 1. Give one.")
        return value

    def number(self, key: str) -> float:
        word = self.by_key[key]
        try:
            value = float(word)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise UserError(f"{key}={word} is not a number of at least 0. Give one.")
        return value

    def share(self, key: str) -> float:
        value = self.number(key)
        if value > 1:
            raise UserError(f"{key}={self.by_key[key]} is a share: give a number from 0 to 1.")
        return value

    def positive_or_null(self, key: str) -> float | None:
        word = self.by_key[key]
        if word == "null":
            return None
        value = self.number(key)
        if not value:
            raise UserError(f"{key}={word} must be above 0, or null. Give such a number.")
        return value

    def choice(self, key: str, names: tuple[str, ...]) -> str:
        word = self.by_key[key]
        if word not in names:
            raise UserError(f"{key}={word} is not one of {', '.join(names)}. Choose one.")
        return word
