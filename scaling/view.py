"""Pages to look at a run's latents: `python -m scaling.view RUN_FOLDER [--out DIR] [--serve]`.

Writes a static site, RUN_FOLDER/viewer/index.html unless --out says otherwise, that a browser opens
from the disk: of every latent the examples it is active in, its histogram, the tokens it promotes,
its neighbours, and what evaluations found out. docs/viewer.md defines what is shown.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID, TimeRemainingColumn

from scaling import run_weights
from scaling.activations.request import make_request
from scaling.config import harvest_config
from scaling.errors import UserError
from scaling.evaluation.material import Material
from scaling.plan import RunPlan
from scaling.runs.store import RunFolder, evaluation_numbers
from scaling.viewer.known import read_known
from scaling.viewer.look import Look, Sizes, look_at
from scaling.viewer.serve import serve
from scaling.viewer.site import check_target, write_site

BATCH_CONTEXTS = 8
DEFAULT_PORT = 8765


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        folder = RunFolder(options.run_folder.absolute())
        out = (options.out or folder.path / "viewer").absolute()
        _check(options)
        check_target(out)
        _write(folder, out, options, console)
        print(out / "index.html")
        if options.serve is not None:
            serve(out, options.serve, lambda url: print(f"{url}  (Ctrl-C ends it)", flush=True))
    except UserError as error:
        print(error, file=sys.stderr)
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
    add("--out", type=Path, metavar="DIR", help="the site's folder (default: RUN_FOLDER/viewer)")
    add("--contexts", type=int, default=512, help="held-out contexts (default: 512)")
    add("--examples", type=int, default=10, help="top ones of a latent, and random ones (10)")
    add("--averaged", action="store_true", help="the averaged weights")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--dtype", help="of the subject model (default: as harvested)")
    add("--data-dir", type=Path, help="activations and models (default: where the launch had them)")
    add(
        "--serve",
        type=int,
        nargs="?",
        const=DEFAULT_PORT,
        metavar="PORT",
        help=f"then serve it to this machine alone (port {DEFAULT_PORT}; 0 = any)",
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    for name in ("contexts", "examples"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: must be at least 1.")
    if options.dtype not in (None, "float32", "bfloat16", "float16"):
        raise UserError(f"--dtype {options.dtype}: use float32, bfloat16 or float16.")


def _write(folder: RunFolder, out: Path, options: argparse.Namespace, console: Console) -> None:
    plan = run_weights.plan_of(folder)
    autoencoder = run_weights.load_run(folder, averaged=options.averaged).to(options.device)
    material = _material(plan, options)
    known = read_known(folder.path / "evaluation", autoencoder.facts.n_latents)
    with Progress(
        *Progress.get_default_columns()[:-1], TimeRemainingColumn(), console=console, transient=True
    ) as progress:
        look = look_at(
            autoencoder, material, known, Sizes(examples=options.examples), _shown(progress)
        )
    write_site(out, look, _run(folder, plan, look, averaged=options.averaged))


def _shown(progress: Progress) -> Any:
    """What shows how far each part is."""
    tasks: dict[str, TaskID] = {}

    def told(part: str, done: int, total: int) -> None:
        if part not in tasks:
            tasks[part] = progress.add_task(part, total=total)
        progress.update(tasks[part], completed=done)

    return told


def _material(plan: RunPlan, options: argparse.Namespace) -> Material:
    """Raises `UserError` where no language model made the activations."""
    if "model" not in plan.config["activations"]:
        raise UserError(
            f"the activations of run {plan.run_id} are of no language model that is known here "
            f"({plan.source.kind}): there is no text to look at its latents on."
        )
    return Material(
        make_request(
            harvest_config(plan.config["activations"]),
            options.data_dir or Path(plan.config["data_dir"]),
        ),
        n_contexts=options.contexts,
        batch_contexts=BATCH_CONTEXTS,
        dtype=options.dtype,
        device=options.device,
    )


def _run(folder: RunFolder, plan: RunPlan, look: Look, *, averaged: bool) -> dict[str, Any]:
    """The run as its pages name it: all numbers of its record and its evaluation."""
    result = folder.read_record().result
    numbers = {name: value for name, value in result.items() if value is not None}
    evaluated: dict[str, float] = {}
    if folder.evaluation_path.exists():
        evaluated = evaluation_numbers(folder.evaluation_path.read_bytes())
    return {
        "run_id": plan.run_id,
        "sweep": folder.sweep,
        "title": plan.title,
        "weights": "averaged" if averaged else "raw",
        "text": plan.source.description.get("text"),
        "n_latents": look.activity.n_latents,
        "record": numbers,
        "evaluation": evaluated,
    }


if __name__ == "__main__":
    sys.exit(main())
