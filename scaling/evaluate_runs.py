"""The metrics of runs, one after the other: what is shared, what is there already, what goes wrong.

A metric that fails takes nothing else with it: it is named with the reason, and the others go on.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from scaling import run_weights
from scaling.errors import UserError
from scaling.evaluate_material import has_text, material_key, material_of
from scaling.evaluation.material import Material
from scaling.evaluation.metric import InParts, Metric, Subject, missing_packages
from scaling.evaluation.registry import METRICS
from scaling.evaluation.results import Results, identity
from scaling.evaluation.screen import Screen
from scaling.hardware import peak_memory_bytes, reset_peak_memory
from scaling.plan import RunPlan
from scaling.runs.evaluation_columns import MEASURED_AS
from scaling.runs.store import RunFolder
from scaling.storage.atomic import remove_temporaries
from scaling.storage.lease import Lease, LeaseLost

LEASE_TIMEOUT_S = 60.0
FOLDER = "evaluation"
"""Within a run's: the lease of who evaluates it, and what metrics keep besides numbers."""


@dataclass(frozen=True)
class Wanted:
    """A metric with the identity that its numbers of a run are to have."""

    metric: Metric
    identity: str
    measured_as: str
    """The same of all runs whose numbers of that metric compare."""
    own: Any
    """Its options."""
    dtype: str | None
    """Of the subject model; None where there is none."""


class Evaluation:
    """The metrics that `options` ask for, of run after run.

    Raises:
        UserError: a device that is not there, or settings that a metric refuses.
    """

    def __init__(self, options: Any, screen: Screen) -> None:
        if options.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"device={options.device}: there is no such GPU. Use device=cpu.")
        self._options = options
        self._screen = screen
        self._all_there = True
        self._metrics = [metric for name in METRICS if (metric := self._possible(name))]
        for metric in self._metrics:
            own = getattr(options, metric.name)
            metric.settings(own)  # refuses now rather than after hours
            if isinstance(metric, InParts) and (left_out := metric.left_out(own)):
                screen.say(f"{metric.name}: {left_out}")
        self._material: tuple[str, Material] | None = None

    def of(self, folders: Sequence[RunFolder]) -> bool:
        """Whether all that was asked for is there now."""
        # One after the other those that share a subject model: only one is held.
        ordered = sorted(folders, key=_material_key)
        self._screen.begin(len(ordered))
        held = [folder for folder in ordered if not self._taken(folder)]
        for folder in [folder for folder in held if not self._taken(folder)]:
            self._missed(f"{folder.run_id}: another process is evaluating it, left to that one")
        return self._all_there

    def _possible(self, name: str) -> Metric | None:
        """The metric if it is asked for and its packages are there."""
        if name not in self._options.metrics:
            return None
        metric = METRICS[name][0]()
        missing = missing_packages(metric)
        if missing:
            self._missed(
                f"{name} is skipped: it needs {', '.join(missing)}. "
                f"pip install {' '.join(missing)} adds it."
            )
        return None if missing else metric

    def _missed(self, why: str) -> None:
        self._all_there = False
        self._screen.say(why)

    def _taken(self, folder: RunFolder) -> bool:
        """Evaluate it, unless another process does."""
        try:
            lease = Lease.acquire(folder.path / FOLDER, timeout_s=LEASE_TIMEOUT_S)
            if lease is None:
                return False
            with lease:
                self._evaluate(folder, lease)
        except (UserError, LeaseLost) as error:
            self._missed(f"  {folder.run_id}: {error}")
        except OSError as error:
            self._missed(
                f"  {folder.run_id}: {error.filename or folder.path} cannot be read or written "
                f"({error.strerror}). Evaluate it as who may write there, or a copy of it."
            )
        except Exception as error:
            # Nor must one run's fault cost the other runs.
            traceback.print_exc()
            self._missed(f"  {folder.run_id}: failed. {type(error).__name__}: {error}")
        return True

    def _evaluate(self, folder: RunFolder, lease: Lease) -> None:
        _remove_leftovers(folder)
        plan = run_weights.plan_of(folder)
        self._screen.run(f"{folder.run_id} {plan.title}")
        results = Results(folder)
        wanted = [self._wanted(metric, plan) for metric in self._metrics]
        left = [one for one in wanted if not results.has(one.metric.name, one.identity)]
        for one in wanted:
            if one not in left:
                self._screen.say(f"  {one.metric.name}: done before")
        if left := [one for one in left if self._has_its_text(one.metric, plan)]:
            material = self._material_for(plan)
            weights = run_weights.load_run(folder, averaged=self._options.averaged)
            for one in left:
                run = Subject(
                    folder.run_id,
                    folder.path / FOLDER,
                    weights.to(self._options.device),
                    one.identity,
                )
                self._measure(one, run, material, results, lease)

    def _has_its_text(self, metric: Metric, plan: RunPlan) -> bool:
        of_text = has_text(plan.source.description)
        if metric.on_text and not of_text:
            self._missed(f"  {metric.name}: skipped, these activations are of no language model")
        return of_text or not metric.on_text

    def _material_for(self, plan: RunPlan) -> Material:
        key = material_key(plan)
        if self._material is None or self._material[0] != key:
            self._material = None  # let go of the last one's model first
            self._material = (key, material_of(plan, self._options, self._screen.metric))
        return self._material[1]

    def _measure(
        self, one: Wanted, run: Subject, material: Material, results: Results, lease: Lease
    ) -> None:
        name = one.metric.name
        reset_peak_memory(self._options.device)
        started = time.monotonic()
        try:
            with self._screen.metric(name) as told:
                measured = one.metric.measure(run, material, one.own, told)
            seconds = time.monotonic() - started
            lease.check()
            results.put(name, one.identity, measured, self._how(one, seconds))
        except UserError as error:
            self._missed(f"  {name}: not measured. {error}")
        except OSError as error:  # a quota, a file system gone read-only
            self._missed(f"  {name}: not measured. {error}")
        except LeaseLost:
            raise
        except Exception as error:
            # One metric's fault on one run must not cost the night's other numbers.
            traceback.print_exc()
            self._missed(f"  {name}: failed. {type(error).__name__}: {error}")
        else:
            self._screen.measured(name, measured, seconds)

    def _how(self, one: Wanted, seconds: float) -> dict[str, Any]:
        options = self._options
        return {
            MEASURED_AS: one.measured_as,
            "version": one.metric.version,
            "settings": dict(one.metric.settings(one.own)),
            "contexts": options.contexts,
            "batch_contexts": options.batch_contexts,
            "dtype": one.dtype,
            "weights": "averaged" if options.averaged else "raw",
            "device": options.device,
            "seconds": round(seconds, 3),
            "peak_memory_bytes": peak_memory_bytes(options.device),
        }

    def _wanted(self, metric: Metric, plan: RunPlan) -> Wanted:
        """batch_contexts and device change the last bits alone: they are noted, not identity."""
        options = self._options
        own = getattr(options, metric.name)
        dtype = options.dtype or plan.source.description.get("model_dtype")
        how = {
            "settings": dict(metric.settings(own)),
            "contexts": options.contexts,
            "dtype": dtype,
            "averaged": options.averaged,
        }
        of_run = identity(metric.name, metric.version, run=plan.run_id, **how)
        return Wanted(metric, of_run, identity(metric.name, metric.version, **how), own, dtype)


def _remove_leftovers(folder: RunFolder) -> None:
    """What killed evaluations left half written. For the holder of the lease."""
    remove_temporaries(folder.path / FOLDER)
    for leftover in folder.path.glob(f".{folder.evaluation_path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def _material_key(folder: RunFolder) -> str:
    try:
        return material_key(run_weights.plan_of(folder))
    except (UserError, OSError):
        return ""  # told when its turn comes
