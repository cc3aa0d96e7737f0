"""How well one latent alone tells a human concept: the probe loss of Gao et al. 2024, section 4.2.

For a task of texts with a label y, and the pre-activation z_i of latent i at a text's last kept
token (probes_examples.py):

    min over i, w, b of  the mean of  -[y log s(w z_i + b) + (1 - y) log(1 - s(w z_i + b))]

with w and b of every latent fitted to half of the documents (probes_fit.py), the latent that does
best there, and its cross-entropy and AUC on the other half. `probe_loss` and `probe_auc` are means
over tasks; log 2 = 0.693 and 0.5 are those of a probe that knows nothing. Three baselines get the
same examples: the channels of the residual stream, as many random directions as there are latents,
and a linear probe of all channels. They read what the autoencoder reads: normalized activations.

Shapes: E examples, D = d_model, N latents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scaling.errors import UserError
from scaling.evaluation.estimate import Estimate
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Measured, Subject, Told
from scaling.evaluation.probes_examples import Examples, examples
from scaling.evaluation.probes_fit import RIDGE, auc, cross_entropy, fit_each
from scaling.evaluation.probes_linear import fit_with_chosen_ridge
from scaling.evaluation.tasks import Task, install
from scaling.evaluation.tasks_registry import DEFAULT, find_tasks
from scaling.interchange.normalization import normalized

SEED = 0
"""Of the random directions."""

Score = dict[str, float]
Features = Callable[[Tensor], Tensor]
"""Normalized vectors [E, D] to features [E, F]."""


@dataclass
class Options:
    """Of probes."""

    tasks: list[str] = field(default_factory=lambda: list(DEFAULT))
    """Names, patterns with *, `paper` for those of the paper, or .jsonl files."""
    texts: int = 400
    """Of each task, at most; half of them to train."""
    tokens: int = 32
    """Of each text, at most: its last ones."""


class Probes:
    """See the module."""

    name = "probes"
    version = 1
    packages = ()
    on_text = True

    def settings(self, options: Options) -> Mapping[str, Any]:
        _check(options)
        there, _ = _readable(options)
        return {
            "tasks": [task.identity() for task in there],
            "texts": options.texts,
            "tokens": options.tokens,
            "ridge": RIDGE,
            "seed": SEED,
        }

    def left_out(self, options: Options) -> str:
        """The tasks whose packages are missing, and the command that adds them all."""
        wanted = find_tasks(options.tasks)
        names = [task.name for task in wanted if task.missing()]
        packages = dict.fromkeys(package for task in wanted for package in task.missing())
        if not names:
            return ""
        return (
            f"{len(names)} of {len(wanted)} tasks are left out ({', '.join(names)}): "
            f"{install(packages)} adds what they need."
        )

    def measure(self, run: Subject, material: Material, options: Options, told: Told) -> Measured:
        _check(options)
        tasks, skipped = _readable(options)
        if not tasks:
            raise UserError(f"probes.tasks: no task can be read. {self.left_out(options)}")
        found: dict[str, dict[str, Any]] = {}
        unusable: list[str] = []
        for number, task in enumerate(tasks):
            told(number, len(tasks))
            of_task = _examples(material, task, options)
            if of_task.has_both_labels:
                found[task.name] = _of_task(run, material, task.name, of_task)
            else:
                unusable.append(task.name)
        told(len(tasks), len(tasks))
        if not found:
            raise UserError("probes.tasks: no task has texts of both labels in two documents.")
        return _measured(found, {"skipped": skipped, "unusable": unusable})


def _check(options: Options) -> None:
    for key, least in (("texts", 8), ("tokens", 2)):
        if getattr(options, key) < least:
            raise UserError(f"probes.{key}={getattr(options, key)} must be at least {least}.")


def _readable(options: Options) -> tuple[list[Task], dict[str, list[str]]]:
    """The tasks that can be read here, and for the others: the command that adds what they need,
    with their names."""
    there: list[Task] = []
    skipped: dict[str, list[str]] = {}
    for task in find_tasks(options.tasks):
        if missing := task.missing():
            skipped.setdefault(install(missing), []).append(task.name)
        else:
            there.append(task)
    return there, skipped


def _examples(material: Material, task: Task, options: Options) -> Examples:
    return material.once(
        f"probes {task.identity()} {options.texts} {options.tokens}",
        lambda m: examples(m, task, options.texts, options.tokens),
    )


def _of_task(run: Subject, material: Material, name: str, of_task: Examples) -> dict[str, Any]:
    """Scores of the run and of the baselines, with what they come from."""
    autoencoder = run.autoencoder
    kind, n_latents = autoencoder.facts.normalization, autoencoder.facts.n_latents
    data = _Data.of(of_task, kind, autoencoder.w_enc.device)
    of_run = data.best(autoencoder.pre_acts)
    return {
        **{("latent" if key == "feature" else key): value for key, value in of_run.items()},
        "channels": material.once(f"channels {name} {kind}", lambda _: data.best(_channels)),
        "random": material.once(
            f"random {name} {kind} {n_latents}", lambda _: data.best(_random(n_latents))
        ),
        "linear": material.once(f"linear {name} {kind}", lambda _: data.linear()),
        "n_train": len(data.train_y),
        "n_test": len(data.test_y),
        "n_documents": int(of_task.n_documents),
        "n_left": int(of_task.n_left),
    }


@dataclass(frozen=True)
class _Data:
    """The examples as an autoencoder reads them: normalized, on its device."""

    train_ED: Tensor
    train_y: Tensor
    documents: list[int]
    test_ED: Tensor
    test_y: Tensor

    @classmethod
    def of(cls, of_task: Examples, kind: str, device: torch.device) -> _Data:
        return cls(
            train_ED=normalized(of_task.train_ED, kind)[0].to(device),
            train_y=of_task.train_labels_E.to(device),
            documents=of_task.train_documents_E.tolist(),
            test_ED=normalized(of_task.test_ED, kind)[0].to(device),
            test_y=of_task.test_labels_E.to(device),
        )

    @torch.no_grad()
    def best(self, features: Features) -> Score:
        """Of the feature whose probe does best on the training side."""
        probes = fit_each(features(self.train_ED), self.train_y)
        best = int(probes.loss_F.argmin())
        logits_E = probes.logits(best, features(self.test_ED)[:, best])
        train_loss = float(probes.loss_F[best])
        return {**self._score(logits_E), "train_loss": train_loss, "feature": best}

    @torch.no_grad()
    def linear(self) -> Score:
        """Of all channels together."""
        probe = fit_with_chosen_ridge(self.train_ED, self.train_y, self.documents)
        return {**self._score(probe.logits(self.test_ED)), "ridge": probe.ridge}

    def _score(self, logits_E: Tensor) -> Score:
        loss = cross_entropy(logits_E, self.test_y)
        return {"loss": loss, "auc": auc(logits_E, self.test_y)}


def _channels(x_ED: Tensor) -> Tensor:
    return x_ED


def _random(n_directions: int) -> Features:
    def features(x_ED: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(SEED)
        directions_DF = torch.randn(x_ED.shape[1], n_directions, generator=generator)
        return x_ED @ directions_DF.to(x_ED)

    return features


def _measured(found: Mapping[str, Any], more: Mapping[str, Any]) -> Measured:
    """Means over tasks, which stand for all that could have been asked."""
    tasks = list(found.values())
    estimates, baselines = {}, {}
    for key in ("loss", "auc"):
        estimates[f"probe_{key}"] = Estimate.mean([one[key] for one in tasks], "tasks")
        baselines[f"probe_{key}"] = {
            name: Estimate.mean([one[name][key] for one in tasks], "tasks")
            for name in ("channels", "random", "linear")
        }
    notes = {"tasks": dict(found), **more}
    return Measured.of(estimates, notes, baselines=baselines, units=json.dumps(list(found)))
