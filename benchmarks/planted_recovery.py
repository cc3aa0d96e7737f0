"""Does a TopK autoencoder find a planted dictionary, and how near does it come to the best coder?

    python -m benchmarks.planted_recovery

d = 64, 256 true directions, 8 active, noise of 5% of the signal's norm; n_latents = 512, k = 8;
one configuration, fixed beforehand on another dictionary (activations.seed=1), three seeds.
Beside the autoencoder's score stand orthogonal matching pursuit (OMP) with the TRUE dictionary,
OMP with the learned one, and the least-squares fit on the true support: the error the data's noise
leaves. Prints a table; about two minutes on one core.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scaling.activations.planted import PlantedSource, planted_spec
from scaling.autoencoder_config import TopKConfig
from scaling.choices import LrRule
from scaling.config import PlantedConfig, RunConfig, TrainConfig
from scaling.launcher_config import LocalLauncherConfig
from scaling.plan import RunPlan
from scaling.schedule import lr_at
from scaling.sweep.planner import make_plan
from scaling.train.build import build_engine
from scaling.train.evaluate import evaluate

SEEDS = (0, 1, 2)
HELD_OUT_TOKENS = 16_384


def config(seed: int) -> RunConfig:
    return RunConfig(
        launcher=LocalLauncherConfig(),
        autoencoder=TopKConfig(n_latents=512, k=8, dead_after_tokens=5_000),
        activations=PlantedConfig(max_tokens=1, eval_tokens=HELD_OUT_TOKENS),
        train=TrainConfig(
            tokens=1_000_000,
            batch_tokens=256,
            lr_rule=LrRule.step_limited,
            decay_fraction=0.2,
            seed=seed,
        ),
    )


@dataclass(frozen=True)
class Recovery:
    seed: int
    normalized_mse: float
    mean_max_cosine: float
    omp_learned: float


def main() -> None:
    torch.set_num_threads(1)
    activations = config(0).activations
    assert isinstance(activations, PlantedConfig)
    source = PlantedSource(planted_spec(activations))
    print(f"OMP, true dictionary: normalized MSE {_omp_score(source, source.dictionary):.4f}")
    print(f"true support, least squares: normalized MSE {_true_support_score(source):.4f}")
    results = [_recover(source, seed) for seed in SEEDS]
    print("\n| seed | normalized MSE | mean max cosine | OMP, learned dictionary |")
    print("|---|---|---|---|")
    for r in results:
        print(
            f"| {r.seed} | {r.normalized_mse:.4f} | {r.mean_max_cosine:.4f} | {r.omp_learned:.4f} |"
        )


def _recover(source: PlantedSource, seed: int) -> Recovery:
    plan = make_plan(config(seed), source.spec)
    engine = build_engine(plan, source)
    for step in range(plan.train.steps):
        engine.step(_batch(plan, source, step), _lr(plan, step))
    held_out = source.eval_batches(2048)
    score = evaluate(
        engine.scorer(), held_out, source.calibration.mean_D, plan.autoencoder.n_latents
    )
    w_dec = engine.weights()["w_dec"]
    cosines = (source.dictionary @ w_dec.T).max(dim=1).values
    return Recovery(seed, score.normalized_mse, float(cosines.mean()), _omp_score(source, w_dec))


def _batch(plan: RunPlan, source: PlantedSource, step: int) -> Tensor:
    train = plan.train
    return source.train_batch(
        seed=train.seed,
        step=step,
        batch_tokens=train.batch_tokens,
        shuffle_block=train.shuffle_block,
    )


def _lr(plan: RunPlan, step: int) -> float:
    train = plan.train
    return lr_at(
        step * train.batch_tokens,
        peak=train.lr,
        total_tokens=train.tokens,
        warmup_tokens=train.warmup_tokens,
        decay_fraction=train.decay_fraction,
    )


def _omp_score(source: PlantedSource, dictionary_ND: Tensor) -> float:
    """Normalized MSE of OMP with k_true atoms of any sign (Mallat & Zhang 1993, orthogonal)."""
    x_BD = source.eval_truth().x_BD
    chosen_BK = torch.zeros(len(x_BD), 0, dtype=torch.int64)
    residual_BD = x_BD
    for _ in range(source.params.k_true):
        match_BN = (residual_BD @ dictionary_ND.T).abs().scatter(1, chosen_BK, -1.0)
        chosen_BK = torch.cat([chosen_BK, match_BN.argmax(dim=1, keepdim=True)], dim=1)
        residual_BD = _residual(x_BD, dictionary_ND[chosen_BK])
    return _normalized(source, residual_BD)


def _true_support_score(source: PlantedSource) -> float:
    truth = source.eval_truth()
    return _normalized(source, _residual(truth.x_BD, source.dictionary[truth.ids_BK]))


def _residual(x_BD: Tensor, atoms_BKD: Tensor) -> Tensor:
    """x minus its projection on the span of its atoms."""
    basis_BDK = atoms_BKD.transpose(1, 2)
    weights_BK1 = torch.linalg.lstsq(basis_BDK, x_BD[:, :, None]).solution
    return x_BD - (basis_BDK @ weights_BK1)[..., 0]


def _normalized(source: PlantedSource, residual_BD: Tensor) -> float:
    about_mean_BD = source.eval_truth().x_BD - source.calibration.mean_D
    return float(residual_BD.double().square().sum() / about_mean_BD.double().square().sum())


if __name__ == "__main__":
    main()
