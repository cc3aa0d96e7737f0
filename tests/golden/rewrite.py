"""Rewrite the golden curve: `make golden`. Review the diff; a change means numerics_version."""

from __future__ import annotations

import subprocess
from pathlib import Path

from scaling.hardware import fingerprint
from scaling.plan import NUMERICS_VERSION
from tests.golden.curve import GOLDEN, golden_curve


def main() -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    header = [
        f"# commit {commit}, numerics_version {NUMERICS_VERSION}",
        f"# {fingerprint('cpu')}, 1 thread",
        "# relative tolerance 1e-4: 40 steps of float32, summed in another order elsewhere",
        "# step normalized_mse aux_loss",
    ]
    rows = [f"{step} {mse:.9g} {aux:.9g}" for step, mse, aux in golden_curve()]
    Path(GOLDEN).write_text("\n".join([*header, *rows]) + "\n")


if __name__ == "__main__":
    main()
