"""What a run is judged by, computed once from its final weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scaling.activations.source import ActivationSource, epochs
from scaling.plan import NUMERICS_VERSION, RunPlan
from scaling.train.architectures import n_params
from scaling.train.engine import Engine, Reconstructor
from scaling.train.evaluate import Evaluation, evaluate
from scaling.train.loop import Row
from scaling.train.mesh import ALONE, Mesh
from scaling.train.stopping import StopRule


@dataclass(frozen=True)
class Scores:
    """Held-out scores under the raw and the averaged weights."""

    raw: Evaluation
    averaged: Evaluation | None
    """None when no average is kept."""

    def as_row(self) -> Row:
        return {
            "eval/normalized_mse": self.raw.normalized_mse,
            "eval/normalized_mse_ema": self.averaged.normalized_mse if self.averaged else None,
            "eval/l0": self.raw.l0,
        }


def held_out(plan: RunPlan, engine: Engine, source: ActivationSource, mesh: Mesh = ALONE) -> Scores:
    """Score the present weights on the fixed held-out set."""
    return Scores(
        raw=_evaluate(plan, engine.scorer(), source, mesh),
        averaged=_evaluate(plan, engine.scorer(averaged=True), source, mesh)
        if plan.train.ema_decay
        else None,
    )


def on_training_set(
    plan: RunPlan, engine: Engine, source: ActivationSource, mesh: Mesh = ALONE
) -> Evaluation:
    """The same score on the first training vectors, as many as are held out: the overfit alarm."""
    sample = source.sample(plan.source.n_eval)
    return evaluate(
        engine.scorer(),
        sample.split(plan.observe.eval_batch_tokens),
        source.calibration.mean_D,
        plan.autoencoder.n_latents,
        mesh,
    )


def _evaluate(
    plan: RunPlan, model: Reconstructor, source: ActivationSource, mesh: Mesh
) -> Evaluation:
    return evaluate(
        model,
        source.eval_batches(plan.observe.eval_batch_tokens),
        source.calibration.mean_D,
        plan.autoencoder.n_latents,
        mesh,
    )


def planned_results(plan: RunPlan, steps_done: int) -> dict[str, Any]:
    """The result fields that need no weights: sizes, settings, and what `steps_done` steps cost."""
    ae, train, source = plan.autoencoder, plan.train, plan.source
    tokens = steps_done * train.batch_tokens
    n, d = ae.n_latents, source.d_model
    return {
        "autoencoder": ae.name,
        "penalty": ae.penalty,
        "target_l0": ae.options.get("target_l0"),
        "dead_treatment": ae.dead_treatment,
        "n_latents": n,
        "k": ae.k,
        "k_aux": ae.k_aux,
        "dead_after_tokens": ae.dead_after_tokens,
        "d_model": d,
        "params": n_params(plan),
        "tokens": tokens,
        "tokens_requested": plan.tokens_requested,
        "batch_tokens": train.batch_tokens,
        "steps": steps_done,
        "lr": train.lr,
        "decay_fraction": train.decay_fraction,
        "seed": train.seed,
        "flops_dense": tokens * ae.flops_dense(d),
        "flops_sparse": tokens * ae.flops_sparse(d),
        "epochs": epochs(source, tokens),
        "activations_id": source.activations_id,
        "eval_hash": source.eval_hash,
        "normalization": source.description["normalization"],
        "subject_model": source.description.get("subject_model"),
        "subject_params": source.description.get("subject_params"),
        "layer": source.description.get("layer"),
        "numerics_version": NUMERICS_VERSION,
    }


def measured_results(
    plan: RunPlan,
    scores: Scores,
    engine: Engine,
    source: ActivationSource,
    mesh: Mesh = ALONE,
    *,
    steps_done: int,
    rule: StopRule | None = None,
) -> dict[str, Any]:
    """The result fields of a finished run that its weights decide, and its stopping rule."""
    return {
        **_flops_of_active(plan, scores.raw.l0, steps_done),
        "normalized_mse": scores.raw.normalized_mse,
        "normalized_mse_ema": scores.averaged.normalized_mse if scores.averaged else None,
        "l0": scores.raw.l0,
        "l0_ema": scores.averaged.l0 if scores.averaged else None,
        "dead_fraction": dead_fraction(plan, engine, mesh, steps_done=steps_done),
        "silent_fraction_eval": scores.raw.silent_fraction,
        "train_normalized_mse": on_training_set(plan, engine, source, mesh).normalized_mse,
        "converged": rule.met if rule else None,
        "last_doubling_fall": rule.last_fall if rule else None,
    }


def _flops_of_active(plan: RunPlan, l0: float, steps_done: int) -> dict[str, Any]:
    """Training FLOPs with the measured L0 in the place of k, where there is no k."""
    ae, tokens = plan.autoencoder, steps_done * plan.train.batch_tokens
    if ae.k is not None:
        return {}
    return {"flops_sparse": tokens * ae.flops_sparse(plan.source.d_model, l0)}


UNMEASURED: dict[str, Any] = dict.fromkeys(
    (
        "normalized_mse",
        "normalized_mse_ema",
        "l0",
        "l0_ema",
        "dead_fraction",
        "silent_fraction_eval",
        "train_normalized_mse",
        "converged",
        "last_doubling_fall",
    )
)
"""The measured fields of a run that did not finish."""


def dead_fraction(
    plan: RunPlan, engine: Engine, mesh: Mesh = ALONE, *, steps_done: int
) -> float | None:
    """Share of latents silent for the window; None when the run was shorter than the window."""
    window = plan.autoencoder.dead_after_tokens
    if steps_done * plan.train.batch_tokens < window:
        return None
    n_dead = int((engine.tokens_since_fired() >= window).sum())
    return mesh.sum_numbers([n_dead], mesh.latent)[0] / plan.autoencoder.n_latents
