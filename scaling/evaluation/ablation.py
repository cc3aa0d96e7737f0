"""How sparse the effects of latents on the subject model's logits are: ablation sparsity.

    x'   = x - s z_i d_i                    the residual of ONE token without what latent i adds to
                                            it (s undoes the normalization; the error stays)
    e_tv = logit'_tv - logit_tv             T positions from that token on, all V tokens
    e_tv = e_tv - median_v(e_tv)            a constant moves no probability
    sparsity = (L1(e) / L2(e))^2 / (V T)    1/(V T) for one logit, 2/pi for Gaussian effects

(Gao et al. 2024, section 4.5.) The mean over active latents at a seeded sample of tokens, the same
tokens for all runs. Baselines at those tokens, shared by all runs: a residual channel set to 0, and
the residual without its part along a random direction. The logits are float32 whatever the subject
model was harvested in: in bfloat16 the effect of one latent drowns in rounding.

Shapes: A ablations at one token, T positions looked at, V = vocabulary, D = d_model.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scaling.activations.split_subject import SplitSubject
from scaling.errors import UserError
from scaling.evaluation.ablation_effects import Effect, Site, axes, logit_changes
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Measured, Subject, Told
from scaling.evaluation.sampled import check_counts
from scaling.storage.atomic import write_bytes

FILE = "ablation.npz"
"""Each ablation of latents: context, token, latent, value, sparsity, l2; int32 and float32."""


@dataclass
class Options:
    """Counted per token where not said otherwise."""

    tokens: int = 32
    """Ablated tokens."""
    latents: int = 32
    """Of the active ones, at most; where there are more, a seeded sample."""
    horizon: int = 16
    """T: positions whose logits are compared, the ablated one first."""
    baselines: int = 8
    """Channels, and as many random directions."""
    seed: int = 0


class Ablation:
    """See the module."""

    name = "ablation"
    version = 2
    packages = ()
    on_text = True

    def settings(self, options: Options) -> Mapping[str, Any]:
        check_counts(self.name, replace(options, seed=1))  # a seed is no count
        return asdict(options)

    def measure(self, run: Subject, material: Material, options: Options, told: Told) -> Measured:
        """The column ablation_sparsity with its baselines; the median and the counts are notes.

        Raises:
            UserError: contexts too short for the horizon.
        """
        sites = _sites_of(material, options)
        subject = material.once("float32 subject", _float32_subject)
        rows, effects = [], Effect(len(sites))
        for done, site in enumerate(sites):
            ids_A, values_A, removed_AD = _contributions(run, site, options, done)
            for effect_ATV in logit_changes(subject, site, removed_AD, options.horizon):
                effects.add(done, effect_ATV)
            pairs = zip(ids_A.tolist(), values_A.tolist(), strict=True)
            rows += [(site.context, site.token, latent, value) for latent, value in pairs]
            told(done + 1, len(sites))
        _save(run, rows, effects)
        baselines = material.once(_key("ablation baselines", options), _baselines(options))
        return replace(_measured(rows, effects, baselines, len(sites)), units=material.units)


def sample_sites(material: Material, options: Options) -> list[Site]:
    """Kept tokens with the whole horizon in their context, spread over the contexts.

    Raises:
        UserError: there are none.
    """
    rng = np.random.default_rng(options.seed)
    batches = list(material.batches())
    kept_CT = torch.cat([batch.kept_CT for batch in batches]).cpu().numpy()
    n_starts = kept_CT.shape[1] - options.horizon + 1
    fits_CT = kept_CT[:, : max(n_starts, 0)]
    order = [c for c in rng.permutation(len(fits_CT)) if fits_CT[c].any()]
    if not order:
        raise UserError(
            f"ablation.horizon={options.horizon}: no token of these contexts of "
            f"{kept_CT.shape[1]} tokens has that many from it on. Give a smaller one."
        )
    pairs: list[tuple[int, int]] = []
    for number in range(options.tokens):
        context = int(order[number % len(order)])
        pairs.append((context, int(rng.choice(np.flatnonzero(fits_CT[context])))))
    residual_CTD = torch.cat([batch.residual_CTD for batch in batches])
    return [
        Site(
            context,
            token,
            material.ids_CT[context : context + 1, : token + options.horizon],
            residual_CTD[context : context + 1, : token + options.horizon].float(),
        )
        for context, token in sorted(set(pairs))
    ]


def _sites_of(material: Material, options: Options) -> list[Site]:
    return material.once(
        _key("ablation sites", options), lambda made_of: sample_sites(made_of, options)
    )


def _key(what: str, options: Options) -> str:
    return f"{what} {sorted(asdict(options).items())}"


def _float32_subject(material: Material) -> SplitSubject:
    """The evaluation's own where that is float32, whatever was harvested with."""
    if material.dtype == "float32":
        return material.subject
    subject = SplitSubject(
        material.model_folder,
        layer=material.request.layer,
        dtype="float32",
        device=material.device,
    )
    subject.residual(material.ids_CT[:1, :2])  # how its blocks hand on what they make
    return subject


def _contributions(
    run: Subject, site: Site, options: Options, number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, values and contributions [A, D] to the residual, of the latents to ablate at a token."""
    x_1D = site.x_D[None]
    values_N = run.autoencoder.latents(x_1D)[0]
    scale = run.autoencoder.encode(x_1D).scale
    ids_A = values_N.nonzero()[:, 0]
    if len(ids_A) > options.latents:
        rng = np.random.default_rng([options.seed, number])
        chosen = np.sort(rng.choice(len(ids_A), options.latents, replace=False))
        ids_A = ids_A[torch.from_numpy(chosen).to(ids_A.device)]
    contribution_AD = values_N[ids_A, None] * run.autoencoder.w_dec[ids_A]
    if scale is not None:
        contribution_AD = contribution_AD * scale.factor_B1
    return ids_A, values_N[ids_A], contribution_AD


def _baselines(options: Options) -> Callable[[Material], dict[str, Effect]]:
    """Effects of residual channels and of random directions at the same tokens."""

    def make(material: Material) -> dict[str, Effect]:
        subject = material.once("float32 subject", _float32_subject)
        sites = _sites_of(material, options)
        found = {name: Effect(len(sites)) for name in ("channels", "random")}
        for number, site in enumerate(sites):
            rng = np.random.default_rng([options.seed, number, 1])
            for name, axes_AD in axes(rng, len(site.x_D), options.baselines).items():
                removed_AD = (axes_AD @ site.x_D.cpu())[:, None] * axes_AD
                on_device_AD = removed_AD.to(site.x_D.device)
                for effect_ATV in logit_changes(subject, site, on_device_AD, options.horizon):
                    found[name].add(number, effect_ATV)
        return found

    return make


def _measured(
    rows: list[tuple[int, int, int, float]],
    effects: Effect,
    baselines: Mapping[str, Effect],
    n_sites: int,
) -> Measured:
    sparsity = np.asarray(effects["sparsity"])
    defined = ~np.isnan(sparsity)
    notes: dict[str, Any] = {
        "median": float(np.median(sparsity[defined])) if defined.any() else None,
        "at_token": _mean(effects["at_token"]),
        "l2": _mean(effects["l2"]),
        "n_tokens": n_sites,
        "n_ablations": len(rows),
        "n_without_effect": int((~defined).sum()),
    }
    for name, effect in baselines.items():
        notes[f"{name}_at_token"] = _mean(effect["at_token"])
        notes[f"{name}_l2"] = _mean(effect["l2"])
        notes[f"n_{name}"] = len(effect["l2"])
    sparsities = {"ablation_sparsity": effects.sparsity}
    why = "no latent is active at these tokens" if not rows else "no ablation moves a logit"
    undefined = [column for column, one in sparsities.items() if one.value is None]
    notes["undefined"] = dict.fromkeys(undefined, why)
    beside = {name: one.sparsity for name, one in baselines.items()}
    return Measured.of(sparsities, notes, baselines={"ablation_sparsity": beside})


def _mean(values: list[float]) -> float | None:
    """Of those defined; None where none is."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else None


def _save(run: Subject, rows: list[tuple[int, int, int, float]], effects: Effect) -> None:
    columns = np.asarray(rows, np.float64).reshape(-1, 4).T
    content = io.BytesIO()
    names = ("context", "token", "latent")
    np.savez(
        content,
        allow_pickle=False,
        **{name: columns[i].astype(np.int32) for i, name in enumerate(names)},
        value=columns[3].astype(np.float32),
        sparsity=np.asarray(effects["sparsity"], np.float32),
        l2=np.asarray(effects["l2"], np.float32),
    )
    run.folder.mkdir(parents=True, exist_ok=True)
    write_bytes(run.folder / FILE, content.getvalue())
