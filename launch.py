"""Train one run or a sweep: `python launch.py KEY=VALUE ...`, `python launch.py -m sweeps=NAME`.

Phase 1: Hydra composes every point, and nothing else. Phase 2, after Hydra has returned: the
points are validated, planned and executed in plain Python, so that an error is an exit code.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scaling.command_line import compose_points
from scaling.errors import UserError


def main() -> int:
    try:
        points = compose_points(Path(__file__).resolve().parent)
        if not points:  # --help, --cfg: Hydra has answered already
            return 0
        from scaling.sweep.launch import launch  # after Hydra: torch is slow to import

        return launch(points)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a disk or folder that fails: the message names it
        print(f"error: {error}. Check runs_dir, data_dir and their disks.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before any run was started; later ones are asked to stop
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
