"""`python -m scaling.budget KEY=VALUE ... [--json]`: what a run would cost, before it is run.

    python -m scaling.budget autoencoder.n_latents=16777216 activations.d_model=12288 \\
        autoencoder.k=256 mesh.dp=8 mesh.latent=512 hardware=h100

Keys are launch.py's; docs/budget.md explains what is printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.console import Console

from scaling.budget.arguments import DEFAULTS, REQUIRED, parse
from scaling.budget.hardware import hardware_names
from scaling.budget.report import as_json, print_report
from scaling.errors import UserError


def main(words: Sequence[str]) -> int:
    """Exit code: 0, or 2 where the command line is wrong."""
    if {"-h", "--help"} & set(words):
        print(_help())
        return 0
    wants_json = "--json" in words
    try:
        asked = parse([word for word in words if word != "--json"])
        if wants_json:
            print(json.dumps(as_json(asked), indent=2))
        else:
            print_report(asked, Console(highlight=False))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _help() -> str:
    required = "\n".join(f"  {key}=NUMBER" for key in REQUIRED)
    optional = "\n".join(f"  {key}={value}" for key, value in DEFAULTS.items())
    models = ", ".join(hardware_names())
    return f"{__doc__}\nrequired:\n{required}\ndefaults:\n{optional}\nhardware: {models}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
