"""Pages to look at a run's latents: `python -m scaling.view RUN_FOLDER [KEY=VALUE] [--serve]`.

Writes a static site, RUN_FOLDER/viewer/index.html unless --out says otherwise, that a browser opens
from the disk: of every latent the examples it is active in, its histogram, the tokens it promotes,
its neighbours, and what evaluations found out. Text, model and weights are chosen by the keys of an
evaluation: contexts (512), averaged, device, dtype, batch_contexts, data_dir, model, text.
docs/viewer.md defines what is shown.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scaling import run_weights
from scaling.errors import UserError
from scaling.evaluate_material import has_text, material_of
from scaling.evaluation import options as evaluation_options
from scaling.evaluation.material import Material
from scaling.evaluation.results import Results, identity
from scaling.evaluation.screen import Screen
from scaling.plan import RunPlan
from scaling.runs.record import Status
from scaling.runs.store import RunFolder
from scaling.storage.atomic import read_json
from scaling.storage.hashing import file_sha256
from scaling.storage.lease import Lease
from scaling.viewer.known import FILES, read_known
from scaling.viewer.look import Sizes, look_at
from scaling.viewer.measured import Measured, Pages, counted, measured
from scaling.viewer.serve import serve, server_of
from scaling.viewer.site import VERSION, check_target, is_made, write_site

KEPT = "evaluation"
"""In a run's folder: what metrics keep beside numbers."""
CONTEXTS = 512
DEFAULT_PORT = 8765
LEASE_TIMEOUT_S = 60.0
_HELD_OUT = ("normalized_mse", "normalized_mse_ema", "l0", "l0_ema", "silent_fraction_eval")
"""Of a record: what training measured on all held-out vectors of the store."""


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    folder = RunFolder(given.run_folder.absolute())
    out = (given.out or folder.path / "viewer").absolute()
    try:
        if given.examples < 1:
            raise UserError(f"--examples {given.examples}: must be at least 1.")
        check_target(out)
        if given.serve is not None:
            server_of(out, given.serve).server_close()  # refuses now rather than after minutes
        _make(folder, out, _options(given.keys), Sizes(examples=given.examples))
        print(out / "index.html")
        if given.serve is not None:
            serve(out, given.serve, lambda url: print(f"{url}  (Ctrl-C ends it)", flush=True))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"{error.filename or out} cannot be read or written ({error.strerror}): name a folder "
            "that can be with --out.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run_folder", type=Path, help="RUNS_DIR/SWEEP/RUN_ID, of a run that is done")
    add("keys", nargs="*", metavar="KEY=VALUE", help="of an evaluation, see above")
    add("--out", type=Path, metavar="DIR", help="the site's folder (default: RUN_FOLDER/viewer)")
    add("--examples", type=int, default=10, help="top ones of a latent, and random ones (10)")
    add(
        "--serve",
        type=int,
        nargs="?",
        const=DEFAULT_PORT,
        metavar="PORT",
        help=f"then serve it to this machine alone (port {DEFAULT_PORT}; 0 = any)",
    )
    return parser


def _options(keys: list[str]) -> Any:
    for key in keys:
        if key.startswith("metrics") or "." in key.partition("=")[0]:
            raise UserError(f"{key} is of evaluations: a viewer measures no metric.")
    return evaluation_options.parsed([f"contexts={CONTEXTS}", *keys])


def _make(folder: RunFolder, out: Path, options: Any, sizes: Sizes) -> None:
    """Write the site, unless the same one is there."""
    plan = run_weights.plan_of(folder)
    if not has_text(plan.source.description):
        raise UserError(
            f"the activations of run {plan.run_id} are of no language model ({plan.source.kind}): "
            "there is no text to look at its latents on."
        )
    wanted = _identity(folder, options, sizes)
    if is_made(out, wanted):
        return
    with _alone(out):
        _write(folder, plan, out, options, sizes, wanted)


def _write(
    folder: RunFolder, plan: RunPlan, out: Path, options: Any, sizes: Sizes, wanted: str
) -> None:
    run = _run(folder, plan, averaged=options.averaged)
    autoencoder = run_weights.load_run(folder, averaged=options.averaged).to(options.device)
    stage = Screen().metric
    material = material_of(plan, options, stage)
    evaluated = _evaluated(folder, run["weights"], _pages(material, options))
    known = read_known(folder.path / KEPT, autoencoder.facts.n_latents, evaluated)
    look = look_at(autoencoder, material, known, sizes, stage)
    write_site(out, look, {**run, "evaluation": _evaluation(evaluated)}, wanted)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two that write one site would each drop what the other has half written.

    Raises:
        UserError: another process writes it.
    """
    beside = out.with_name(f".{out.name}.writer")
    lease = Lease.acquire(beside, timeout_s=LEASE_TIMEOUT_S)
    if lease is None:
        raise UserError(
            f"another process is writing {out}: wait for it, or name another folder with --out."
        )
    try:
        with lease:
            yield
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _identity(folder: RunFolder, options: Any, sizes: Sizes) -> str:
    """Of all that a site shows: settings, and every file that it is made from but the weights,
    which a run that is done keeps."""
    files = [folder.record_path, folder.evaluation_path]
    files += [folder.path / KEPT / name for name in FILES.values()]
    names = ("contexts", "batch_contexts", "averaged", "dtype", "device", "model", "text")
    return identity(
        "viewer",
        VERSION,
        settings={name: getattr(options, name) for name in names},
        sizes=asdict(sizes),
        files={path.name: file_sha256(path) for path in files if path.exists()},
    )


def _run(folder: RunFolder, plan: RunPlan, *, averaged: bool) -> dict[str, Any]:
    """The run as its pages name it, with the numbers of its record."""
    record = folder.read_record()
    if record.status is not Status.done or record.result is None:
        raise UserError(f"run {plan.run_id} is {record.status}: only a run that is done has pages.")
    return {
        "run_id": plan.run_id,
        "sweep": folder.sweep,
        "title": plan.title,
        "weights": "averaged" if averaged else "raw",
        "text": plan.source.description.get("text"),
        "record": _record(plan, record.result),
    }


def _evaluated(folder: RunFolder, weights: str, pages: Pages) -> dict[str, Measured]:
    """Of the run's evaluation the metrics that are of these weights, by name."""
    results = Results(folder)
    columns = results.of_weights(weights)
    entries = read_json(folder.evaluation_path)["metrics"] if columns else {}
    return {
        metric: measured(
            metric, {name: results.numbers.get(name) for name in names}, entries[metric], pages
        )
        for metric, names in columns.items()
    }


def _evaluation(evaluated: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """Its numbers, those of a metric together with what they were measured on."""
    groups = [{**asdict(one), "numbers": _known(one.numbers)} for one in evaluated.values()]
    return [group for group in groups if group["numbers"]]


def _record(plan: RunPlan, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The numbers of the run's record in the same way: training measured some itself."""
    known, n = _known(result), plan.source.n_eval
    measured_on = {
        f"all {counted(n, 'held-out token')} of the store": _HELD_OUT,
        counted(n, "training token"): ("train_normalized_mse",),
        "settings and training": tuple(known.keys() - {*_HELD_OUT, "train_normalized_mse"}),
    }
    groups = [
        {"on": on, "numbers": {name: known[name] for name in known if name in names}}
        for on, names in measured_on.items()
    ]
    return [group for group in groups if group["numbers"]]


def _pages(material: Material, options: Any) -> Pages:
    n_contexts = len(material.ids_CT)
    return Pages(
        contexts=n_contexts,
        is_all=n_contexts < options.contexts,
        settings={
            "dtype": material.dtype,
            "device": options.device,
            "batch_contexts": options.batch_contexts,
        },
    )


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is no number, which no page can show."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


if __name__ == "__main__":
    sys.exit(main())
