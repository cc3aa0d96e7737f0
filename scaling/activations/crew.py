"""Who harvests: this process alone, or several processes side by side.

A crew makes the parts it is given; which member makes which part does not matter. Members work on
one thread each: on CPUs, processes scale where threads of one forward pass do not, and the bytes do
not depend on how many there are.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from scaling.activations.contexts import load_tokenized
from scaling.activations.parts import Part, harvest_part
from scaling.activations.recipe import Recipe
from scaling.errors import UserError
from scaling.malloc import KEEP_PAGES
from scaling.storage.atomic import write_json

OnTokens = Callable[[int], None]

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Job:
    """What every member of a crew needs to know; JSON-able."""

    model: Path
    """Local folder."""
    layers: tuple[int, ...]
    recipe: Recipe
    work: Path

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "model": str(self.model), "work": str(self.work)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Job:
        return cls(
            model=Path(data["model"]),
            layers=tuple(data["layers"]),
            recipe=Recipe(**data["recipe"]),
            work=Path(data["work"]),
        )


class Crew(Protocol):
    def harvest(self, parts: Iterable[Part], on_tokens: OnTokens) -> None:
        """Make the parts; `on_tokens` is called in the caller's thread with tokens just done."""
        ...


class Member:
    """One process's share: a loaded model and the contexts."""

    def __init__(self, job: Job, device: str) -> None:
        from scaling.activations.subject import Subject

        self._job = job
        self._subject = Subject(
            job.model,
            layers=job.layers,
            dtype=job.recipe.model_dtype,
            device=device,
        )

    def make(self, part: Part, on_tokens: OnTokens) -> None:
        # Read anew each time: the text may have been tokenized further meanwhile.
        tokenized = load_tokenized(self._job.work)
        assert tokenized is not None
        harvest_part(
            part,
            subject=self._subject,
            contexts=tokenized.contexts[part.split],
            recipe=self._job.recipe,
            work=self._job.work,
            on_tokens=on_tokens,
        )


class SerialCrew:
    """This process, on one thread."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __enter__(self) -> Self:
        import torch

        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._member = Member(self._job, device_of(0))
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self._threads)

    def harvest(self, parts: Iterable[Part], on_tokens: OnTokens) -> None:
        for part in parts:
            self._member.make(part, on_tokens)


class ProcessCrew:
    """`n` processes (scaling.activations.crew_member), fed part by part over their stdin."""

    def __init__(self, job: Job, n: int, label: str = "") -> None:
        """`label` keeps apart the logs of nodes that share the work folder."""
        self._job = job
        self._n = n
        self._label = label
        self._members: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        job_file = self._job.work / "job.json"
        write_json(job_file, self._job.to_json())
        self._members = [self._start(job_file, index) for index in range(self._n)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for member in self._members:
            with suppress(BrokenPipeError):
                assert member.stdin is not None
                member.stdin.close()  # the end of its work
            if kind is not None:
                member.kill()
            member.wait()
            assert member.stdout is not None
            member.stdout.close()

    def harvest(self, parts: Iterable[Part], on_tokens: OnTokens) -> None:
        todo: queue.SimpleQueue[Part] = queue.SimpleQueue()
        for part in parts:
            todo.put(part)
        events: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()
        for index in range(self._n):
            threading.Thread(target=self._feed, args=(index, todo, events), daemon=True).start()
        finished = 0
        while finished < self._n:
            match events.get():
                case None:
                    finished += 1
                case Exception() as error:
                    raise error
                case tokens:
                    on_tokens(tokens)

    def _feed(
        self,
        index: int,
        todo: queue.SimpleQueue[Part],
        events: queue.SimpleQueue[int | Exception | None],
    ) -> None:
        """Hand parts to one member until none is left, passing on what it reports."""
        try:
            while True:
                try:
                    part = todo.get_nowait()
                except queue.Empty:
                    break
                self._give(index, part, events.put)
            events.put(None)
        except Exception as error:
            events.put(error)

    def _give(self, index: int, part: Part, on_tokens: OnTokens) -> None:
        member = self._members[index]
        assert member.stdin is not None
        assert member.stdout is not None
        with suppress(BrokenPipeError):  # then its stdout has ended, which tells more
            member.stdin.write(json.dumps(asdict(part)) + "\n")
            member.stdin.flush()
        for line in member.stdout:
            message = json.loads(line)
            if "error" in message:
                raise UserError(message["error"])
            if "done" in message:
                return
            on_tokens(message["tokens"])
        raise self._obituary(index)

    def _start(self, job_file: Path, index: int) -> subprocess.Popen[str]:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        with self._log(index).open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "scaling.activations.crew_member", job_file, str(index)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the parent, which ends its members
                env={**os.environ, **KEEP_PAGES, **_ONE_THREAD, "PYTHONPATH": path},
            )

    def _log(self, index: int) -> Path:
        return self._job.work / f"member-{self._label}{index}.log"

    def _obituary(self, index: int) -> UserError:
        code = self._members[index].wait()
        cause = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        words = self._log(index).read_text(errors="replace").strip().splitlines()
        return UserError(
            f"harvesting process {index} {cause}; finished parts are kept, and the same launch "
            f"goes on from them. If memory ran out, set activations.processes below {self._n}. "
            f"Its last words, in {self._log(index)}: {words[-1] if words else '(none)'}"
        )


def node_crew(
    job: Job, n_parts: int, *, processes: int | None, label: str = ""
) -> SerialCrew | ProcessCrew:
    """The crew of one machine, of the size that suits it."""
    weight_bytes = sum(path.stat().st_size for path in job.model.glob("*.safetensors"))
    size = crew_size(processes, n_parts, weight_bytes)
    return ProcessCrew(job, size, label) if size > 1 else SerialCrew(job)


def device_of(index: int) -> str:
    """The device of a crew's member: one GPU each, in turn, where there are any."""
    import torch

    n_gpus = torch.cuda.device_count()
    return f"cuda:{index % n_gpus}" if n_gpus else "cpu"


def crew_size(processes: int | None, n_parts: int, weight_bytes: int) -> int:
    """Members to start: `processes`, or one per core (GPU) that the memory allows."""
    if processes is None:
        import psutil
        import torch

        units = torch.cuda.device_count() or len(os.sched_getaffinity(0))
        # Loading holds the weights about twice; another GB is for Python and activations.
        fitting = psutil.virtual_memory().available // (2 * weight_bytes + (1 << 30))
        processes = max(1, min(units, fitting))
    return max(1, min(processes, n_parts))
