"""A process that trains one run after another: `python -m scaling.worker`.

It reads commands from stdin and answers with events on stdout, one JSON object a line:

    {"runs": [FOLDER, ...], "lease_timeout_s": S}
        ->  of each run: held | started, progress..., finished

Several runs of one command are trained by turns on the same batches (`scaling.multiplex`), and each
tells of itself. It imports torch once, before its first run. SIGTERM, or the end of stdin (its
parent is gone), makes the runs in hand write a checkpoint and end as `preempted`. Everything else
that is printed goes to stderr, so that no library can garble the events.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from scaling.multiplex import Runners, take_up_all
from scaling.runs.store import RunFolder
from scaling.take_up import StopWish

DEFAULT_RUNNER = "scaling.runner:run"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runner", default=DEFAULT_RUNNER, help="module:function")
    options = parser.parse_args(arguments)
    channel = Channel()
    runners = _load(options.runner)
    channel.send(event="ready")
    for command in iter(channel.commands.get, None):
        if channel.stop.is_set():
            break
        folders = [RunFolder(Path(path)) for path in command["runs"]]
        take_up_all(folders, command, runners, channel)
    return 0


class Channel:
    """A parent beyond stdin and stdout: commands in, events out, and the wish to stop."""

    def __init__(self) -> None:
        self.stop = StopWish()
        self.commands: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._events = _reserve_stdout()
        signal.signal(signal.SIGTERM, lambda _signal, _frame: self._wish_to_stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and says so by SIGTERM
        threading.Thread(target=self._read_commands, daemon=True).start()

    def send(self, **event: Any) -> None:
        line = json.dumps(event) + "\n"
        # With the parent gone there is nobody to tell; the end of stdin says so too.
        with suppress(BrokenPipeError):
            os.write(self._events, line.encode())

    def _read_commands(self) -> None:
        for line in sys.stdin:
            self.commands.put(json.loads(line))
        self._wish_to_stop()

    def _wish_to_stop(self) -> None:
        self.stop.set()
        self.commands.put(None)


def _reserve_stdout() -> int:
    """A descriptor of the real stdout; from now on printing goes to stderr."""
    events = os.dup(1)
    os.dup2(2, 1)
    return events


def _load(name: str) -> Runners:
    """The function trains one run; its module's `together`, where there is one, several."""
    module_name, _, function = name.partition(":")
    module = importlib.import_module(module_name)
    return Runners(getattr(module, function), getattr(module, "together", None))


if __name__ == "__main__":
    sys.exit(main())
