"""How well n-gram patterns explain latents (N2G), and what the subject model keeps of them.

Patterns are built on half of the held-out documents and tested on the other half (halves.py):

    precision  of the tokens that a latent's patterns match, the share at which it is active
    recall     of the tokens at which it is active, the share that its patterns match

for a seeded sample of latents, from their strongest activations, on ALL tokens tested; beside them,
in the notes, on the contexts of the strongest alone, where explanations look better than they are.
Each is a mean over the latents that have one: without a match there is no precision.

explanation_ce is the subject model's cross-entropy of the next token when every latent takes the
value that its patterns say, s E[s a] / E[s^2] (the scale from the building half), and 0 without a
match; patterns are then built for all latents active at any probed token. A bigram model of the
training text is what it has to beat (Gao et al. 2024, sections 4.3 and 4.4).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scaling.errors import UserError
from scaling.evaluation import explain_ce
from scaling.evaluation import explain_patterns as patterns
from scaling.evaluation.estimate import Estimate
from scaling.evaluation.explain_activity import Activity, counts, decoded, scales, simulated
from scaling.evaluation.halves import halves
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Measured, Subject, Told
from scaling.evaluation.n2g import Ints, Trie
from scaling.storage.atomic import write_bytes

FILE = "n2g.json"
"""For readers: latent to its patterns, from all probed tokens, with their precision and recall."""

N_TOP = 16
"""Strongest activations whose contexts are the ones of the notes `top_*`."""

_WHY = {
    "n2g_precision": "no pattern of a sampled latent matches a tested token",
    "n2g_recall": "no latent is active in both halves",
}
"""Such a column is undefined."""


@dataclass
class Options:
    """Counts are of tokens where not said otherwise."""

    contexts: int = 512
    """Held-out contexts, instead of the evaluation's own number: rare latents need text."""
    latents: int = 128
    """Sampled for precision and recall: latents."""
    examples: int = 16
    """Of each sampled latent: its strongest in the building half."""
    random_examples: bool = False
    """A seeded sample of its activations instead of the strongest."""
    shared: int = 1536
    """A seeded sample of the building half, probed once for all runs: explanations of all latents
    are built on these and on the examples."""
    max_length: int = 6
    """Of patterns."""
    ratio: float = 0.5
    """Of its activation that a suffix must keep."""
    saliency: float = 0.5
    """Of an activation that a token must carry, or it becomes a wildcard."""
    bigram_contexts: int = 32768
    """Training contexts that the bigram model counts."""
    seed: int = 0


class Explain:
    """See the module."""

    name = "explain"
    version = 2
    packages = ()
    on_text = True

    def settings(self, options: Options) -> Mapping[str, Any]:
        """Raises `UserError` for one out of range."""
        _check(options)
        return asdict(options)

    def measure(self, run: Subject, material: Material, options: Options, told: Told) -> Measured:
        """The columns n2g_precision, n2g_recall, explanation_ce; notes are counts and baselines."""
        material = material.with_contexts(options.contexts)
        build, test = material.once("explain halves", halves)
        active = patterns.true_activity(run, material, build)
        tested = patterns.true_activity(run, material, test)
        n_latents = run.autoencoder.facts.n_latents
        sampled, n_eligible = patterns.sample(active, tested, n_latents, options)
        chosen = patterns.examples(active, sampled, options)
        at = patterns.probes(material, build, chosen, options, told)
        found = list(patterns.explained(run.autoencoder, material, at, active, options))
        of_chosen, of_all = patterns.tries(found, chosen)

        ids_CT = material.ids_CT.numpy()
        said = simulated(of_all, ids_CT, test.tokens_R)
        in_build = simulated(of_all, ids_CT, build.tokens_R)
        scale_N = scales(in_build, active, n_latents)
        n2g, n2g_notes = _n2g(simulated(of_chosen, ids_CT, test.tokens_R), tested, sampled, ids_CT)
        ce, beside, ce_notes = _ce(run, material, patterns.scaled(said, scale_N), options)
        _save(run, of_all, said, tested)
        notes = {
            **n2g_notes,
            **ce_notes,
            "n_latents_sampled": len(sampled),
            "n_latents_eligible": n_eligible,
            "n_latents_explained": len({one.latent for one in found if one.pattern is not None}),
            "n_examples": len(found),
            "n_examples_without_pattern": sum(one.pattern is None for one in found),
            "n_tokens_probed": len(at.tokens_E),
            "n_contexts": len(ids_CT),
            "n_documents": len(np.unique(material.documents_C)),
            "n_tokens_tested": len(test.tokens_R),
            "activity_explained": _explained(said, tested),
        }
        estimates = {**n2g, "explanation_ce": ce}
        return Measured.of(
            estimates, notes, baselines={"explanation_ce": beside}, units=material.units
        )


def _check(options: Options) -> None:
    for key in ("latents", "examples", "shared", "max_length", "bigram_contexts"):
        if (value := getattr(options, key)) < 1:
            raise UserError(f"explain.{key}={value} must be at least 1.")
    for key in ("ratio", "saliency"):
        if not 0 < (value := getattr(options, key)) < 1:
            raise UserError(f"explain.{key}={value} must be between 0 and 1.")
    if options.contexts < 2:
        raise UserError(
            f"explain.contexts={options.contexts} must be at least 2: explanations are built on "
            "one half and tested on the other."
        )


def _n2g(
    said: Activity, true: Activity, sampled: Ints, ids_CT: Ints
) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """The two columns, and the same on the contexts of the strongest activations as notes."""
    n_positions = ids_CT.shape[1]
    top = {
        latent: np.unique(_strongest(true, latent) // n_positions) for latent in sampled.tolist()
    }
    said_top, true_top = (_in_contexts(one, top, n_positions) for one in (said, true))
    precision, recall = _rates(said, true, sampled)
    top_precision, top_recall = _rates(said_top, true_top, sampled)
    notes = {
        "top_precision": Estimate.mean(top_precision, "latents").value,
        "top_recall": Estimate.mean(top_recall, "latents").value,
        "n_without_match": int(np.isnan(precision).sum()),
    }
    rates = {
        "n2g_precision": Estimate.mean(precision, "latents"),
        "n2g_recall": Estimate.mean(recall, "latents"),
    }
    notes["undefined"] = {name: _WHY[name] for name, one in rates.items() if one.value is None}
    return rates, notes


def _strongest(true: Activity, latent: int) -> Ints:
    tokens, values = true.of(latent)
    return tokens[np.argsort(-values, kind="stable")[:N_TOP]]


def _in_contexts(one: Activity, contexts: Mapping[int, Ints], n_positions: int) -> Activity:
    """Pairs of these latents, each in its own contexts."""
    span = one.span
    keys = [latent * span + context for latent, own in contexts.items() for context in own]
    return one.where(np.isin(one.latents_P * span + one.tokens_P // n_positions, keys))


def _rates(said: Activity, true: Activity, latents: Ints) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of each latent; NaN where nothing is said, or nothing active."""
    n_said, n_true, n_both = (one.astype(np.float64) for one in counts(said, true, latents))
    with np.errstate(invalid="ignore"):
        return n_both / n_said, n_both / n_true


def _explained(said: Activity, true: Activity) -> float | None:
    """The share of all activation (the sum of values) at pairs that a pattern matches."""
    here, _ = true.shared_with(said)
    total = float(true.values_P.sum(dtype=np.float64))
    return float(true.values_P[here].sum(dtype=np.float64)) / total if total else None


def _ce(
    run: Subject, material: Material, said: Activity, options: Options
) -> tuple[Estimate, dict[str, Estimate], dict[str, Any]]:
    """explanation_ce, what it is to be compared with, and the share recovered as notes."""
    build, _ = material.once("explain halves", halves)
    baselines = material.once(
        f"explain baselines {options.bigram_contexts}",
        lambda one: explain_ce.baselines(one, build.x_RD.mean(dim=0), options.bigram_contexts),
    )
    ce = explain_ce.with_replaced(material, decoded(run.autoencoder, said))
    latents = explain_ce.with_replaced(material, lambda x, _: run.autoencoder.reconstruct(x))
    beside = {"bigrams": baselines.bigrams, "latents": latents}
    shares = {"recovered": ce, "bigram_recovered": baselines.bigrams, "latents_recovered": latents}
    notes = {
        "ce": baselines.model.value,
        "ce_mean": baselines.mean.value,
        "n_bigram_contexts": baselines.n_bigram_contexts,
        **{name: baselines.recovered(one.value or 0.0) for name, one in shares.items()},
    }
    return ce, beside, notes


def _save(run: Subject, trie: Trie, said: Activity, true: Activity) -> None:
    """Patterns in reading order; null is a wildcard."""
    found: dict[int, list[dict[str, Any]]] = {}
    for latent, pattern, values in trie.patterns():
        tokens = [None if token < 0 else token for token in reversed(pattern)]
        value = sum(values) / len(values)
        found.setdefault(latent, []).append(
            {"tokens": tokens, "value": value, "examples": len(values)}
        )
    latents = np.asarray(sorted(found), np.int64)
    precision, recall = _rates(said, true, latents)
    content = {
        str(latent): {
            "precision": None if np.isnan(precision[i]) else float(precision[i]),
            "recall": None if np.isnan(recall[i]) else float(recall[i]),
            "patterns": sorted(found[latent], key=lambda one: (-one["examples"], -one["value"])),
        }
        for i, latent in enumerate(latents.tolist())
    }
    run.folder.mkdir(parents=True, exist_ok=True)
    write_bytes(run.folder / FILE, json.dumps(content, allow_nan=False).encode())
