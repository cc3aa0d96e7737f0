"""One harvesting process: reads parts from stdin, makes them, reports on stdout, a JSON line each.

It ends when its stdin does, or when nobody reads its reports: a killed parent leaves none behind.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

import torch

from scaling.activations.crew import Job, Member, device_of
from scaling.activations.parts import Part
from scaling.errors import UserError
from scaling.storage.atomic import read_json


def main(job_file: Path, index: int) -> None:
    reports = _reserve_stdout()

    def report(**message: Any) -> None:
        print(json.dumps(message), file=reports, flush=True)

    torch.set_num_threads(1)
    try:
        member = Member(Job.from_json(read_json(job_file)), device_of(index))
        for line in sys.stdin:
            part = Part(**json.loads(line))
            member.make(part, lambda tokens: report(tokens=tokens))
            report(done=part.number)
    except UserError as error:
        report(error=str(error))
    except BrokenPipeError:
        os._exit(0)  # the parent is gone, and with it the reader of any farewell


def _reserve_stdout() -> TextIO:
    """Keep the real stdout for reports; what libraries print goes to stderr."""
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return reports


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
