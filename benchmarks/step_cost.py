"""What does one training step cost, here and in the published packages, on this CPU?

    python -m benchmarks.step_cost                        every shape, every contender
    python -m benchmarks.step_cost --quick                does it all still work? (toy sizes)
    python -m benchmarks.step_cost --shapes small-n1024 --contenders ours_torch sparsify
    python -m benchmarks.step_cost --out docs/benchmarks/step_cost_NAME_DATE.md

Each contender does its own package's whole step (loss, backward, what it does to gradients, Adam,
what it does to decoder norms) in a process of its own, on the same batches in memory, with the
same initial weights, in float32 with the same number of threads; no clipping, no average of
weights. They take turns, in an order that rotates. Missing packages are installed first (see
benchmarks/peers/install.py), each into an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import contenders, shapes
from benchmarks.peers.checks import remarks
from benchmarks.peers.contenders import Entry
from benchmarks.peers.install import DEFAULT_ENVS, PEERS, TORCH, install
from benchmarks.peers.report import ShapeResult
from benchmarks.peers.session import KeepPages, Measured, Settings, measure
from benchmarks.peers.shapes import Shape
from scaling.runs.provenance import provenance

DEFAULT_SHAPES = ["main", "dead10", "small"]
GIB = 2**30

LEGEND = """\
Medians over rounds, and their range; a round is one turn of every contender. *Slanted* rows are the
encoder's forward matmul alone, not a step. **Bold**: the fastest of the published packages.
"x encoder fp32": wall time over that of the float32 encoder matmul as torch does it. "x best peer":
how many times as fast as the bold row. "own MB": peak resident memory less what the process held
before the model was built (libraries and batches)."""

MALLOC = {
    KeepPages.all: "all with glibc told to keep freed pages (scaling/malloc.py)",
    KeepPages.ours: "ours with glibc told to keep freed pages (scaling/malloc.py), as our runs "
    "are, and the packages with its allocator as it comes, as theirs are",
    KeepPages.none: "all with glibc's allocator as it comes",
}


def main() -> None:
    args = _arguments()
    settings = Settings(
        envs=args.envs.resolve(),
        threads=args.threads,
        rounds=args.rounds,
        warm_up_rounds=2,
        memory_bytes=int(args.memory_gib * GIB),
        keep_pages=args.keep_pages,
    )
    entries = contenders.select(args.contenders)
    chosen = shapes.select(["quick"] if args.quick else args.shapes)
    install(sorted({e.env for e in entries if e.env}), args.envs, args.torch_index)
    header = _header(settings, entries)
    print(header)
    results = []
    for shape in chosen:
        results.append(_measure_shape(shape, entries, settings))
        print(f"\n{results[-1].table()}", flush=True)
        if args.out:
            _write(args.out, header, settings, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(s.name for s in shapes.SHAPES)
    parser.add_argument(
        "--shapes", nargs="+", default=DEFAULT_SHAPES, help=f"names or their first part, of {names}"
    )
    parser.add_argument("--quick", action="store_true", help="toy shapes: a smoke test")
    parser.add_argument(
        "--contenders", nargs="+", help=f"of {', '.join(e.name for e in contenders.ENTRIES)}"
    )
    parser.add_argument("--rounds", type=int, default=7, help="measured, after 2 that warm up")
    parser.add_argument("--threads", type=int, default=_cores(), help="default: all cores")
    parser.add_argument(
        "--memory-gib", type=float, default=15.0, help="what contenders alive at once may use"
    )
    parser.add_argument(
        "--keep-pages",
        type=KeepPages,
        choices=list(KeepPages),
        default=KeepPages.all,
        help="whose allocator keeps freed pages: all = the same for everyone, at its fastest; "
        "ours = each as it is shipped; none = nobody's",
    )
    parser.add_argument("--envs", type=Path, default=DEFAULT_ENVS, help="the peers' environments")
    parser.add_argument("--torch-index", help="where to get torch, e.g. a CPU-only build")
    parser.add_argument("--out", type=Path, help="Markdown file; a .json of all steps beside it")
    return parser.parse_args()


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measure_shape(shape: Shape, entries: list[Entry], settings: Settings) -> ShapeResult:
    groups = contenders.groups(entries, shape, settings.memory_bytes)
    found: list[Measured] = []
    for i, group in enumerate(groups, start=1):
        part = f" (group {i} of {len(groups)})" if len(groups) > 1 else ""
        print(f"{shape.name}{part}: {', '.join(e.name for e in group)}", file=sys.stderr)
        found += measure(group, shape, settings)
    names = [[entry.name for entry in group] for group in groups]
    return ShapeResult(shape, names, found, remarks(shape, found))


def _header(settings: Settings, entries: list[Entry]) -> str:
    peers = [PEERS[env].package for env in sorted({e.env for e in entries if e.env})]
    machine = f"{provenance()['cpu']}, {_cores()} cores, {platform.system()}"
    lines = [
        "# Cost of one training step on CPU",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine}; {settings.threads} threads; "
        f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}); "
        f"against {', '.join(peers) or 'no other package'}. {settings.rounds} rounds after "
        f"{settings.warm_up_rounds}; {MALLOC[settings.keep_pages]}.",
        "",
        LEGEND,
    ]
    if torch.__version__.partition("+")[0] != TORCH.partition("==")[2]:
        lines += ["", f"**Not the same torch for all**: the packages run with {TORCH}."]
    return "\n".join(lines)


def _write(out: Path, header: str, settings: Settings, results: list[ShapeResult]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n\n".join([header, *(r.table() for r in results)]) + "\n")
    content: dict[str, Any] = {
        "provenance": provenance(),
        "peers": {name: peer.package for name, peer in PEERS.items()},
        "threads": settings.threads,
        "rounds": settings.rounds,
        "warm_up_rounds": settings.warm_up_rounds,
        "keep_pages": settings.keep_pages,
        "results": [result.as_json() for result in results],
    }
    out.with_suffix(".json").write_text(json.dumps(content, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
