"""Documents: from local files, the hub or the package, split by a hash of their text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.activations import embedded
from scaling.activations.fingerprint import fingerprint_files
from scaling.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".parquet")
SEPARATOR = "<|endoftext|>"
"""A line of a .txt file that holds only this ends a document."""


@dataclass(frozen=True)
class TextSource:
    """Where documents come from. `files` is empty for a hub dataset."""

    name: str
    files: tuple[Path, ...]
    root: Path | None
    column: str
    split: str

    def fingerprint(self) -> str:
        """Names the content: by its bytes for files, by its name for a hub dataset."""
        if self.name == embedded.EMBEDDED:
            return embedded.text_fingerprint()
        if self.root is None:
            return f"hub:{self.name}/{self.split}/{self.column}"
        return f"files:{fingerprint_files(self.root, self.files)}/{self.column}"

    def most_characters(self) -> int | None:
        """No more than these are in it; None where nothing short of reading it tells."""
        if not self.files or any(path.suffix not in (".txt", ".jsonl") for path in self.files):
            return None
        return sum(path.stat().st_size for path in self.files)

    def documents(self) -> Iterator[str]:
        """Every document, in a fixed order."""
        if self.root is None:
            yield from _hub_documents(self)
        for path in self.files:
            yield from _file_documents(path, self.column)


def find_text(name: str, *, column: str, split: str) -> TextSource:
    """The text that `activations.text=name` means; reads nothing yet.

    Raises:
        UserError: a path that does not exist, or holds no text this program reads.
    """
    if name == embedded.EMBEDDED:
        root = embedded.text_folder()
        return TextSource(name, tuple(sorted(root.glob("*.txt"))), root, column, split)
    path = Path(name).expanduser()
    if path.is_dir():
        return _local(name, path, sorted(path.rglob("*")), column, split)
    if path.is_file():
        return _local(name, path.parent, [path], column, split)
    if path.suffix in SUFFIXES or path.is_absolute() or name.startswith((".", "~")):
        raise UserError(
            f"activations.text={name!r} does not exist: give a {', '.join(SUFFIXES)} file, a "
            "folder of them, the name of a hub dataset, or 'embedded'."
        )
    return TextSource(name, (), None, column, split)


def document_hash(document: str) -> int:
    """Of its text, in 64 bits: copies have the same."""
    digest = hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def is_held_out(document: str, eval_fraction: float) -> bool:
    """Whether a document is in the evaluation split: a pure function of its text.

    Copies of a document are therefore always on the same side.
    """
    return document_hash(document) / 2**64 < eval_fraction


def _local(name: str, root: Path, found: list[Path], column: str, split: str) -> TextSource:
    files = tuple(path for path in found if path.suffix in SUFFIXES)
    if not files:
        raise UserError(
            f"activations.text={name!r} holds no {', '.join(SUFFIXES)} file: point it to one, or "
            "to a folder of them."
        )
    return TextSource(name, files, root, column, split)


def _file_documents(path: Path, column: str) -> Iterator[str]:
    match path.suffix:
        case ".txt":
            yield from _txt_documents(path)
        case ".jsonl":
            yield from _jsonl_documents(path, column)
        case _:
            yield from _parquet_documents(path, column)


def _txt_documents(path: Path) -> Iterator[str]:
    lines: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.strip() == SEPARATOR:
                yield "".join(lines)
                lines = []
            else:
                lines.append(line)
    yield "".join(lines)


def _jsonl_documents(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"activations.text: line {number} of {path} is not JSON ({error}): mend the "
                    "file or name another."
                ) from error
            yield _text_of(row, column, f"line {number} of {path}")


def _parquet_documents(path: Path, column: str) -> Iterator[str]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(
            f"activations.text: reading {path} needs pyarrow: run `pip install "
            "'sae-scaling[text]'`, or give .txt or .jsonl files."
        ) from error
    try:
        file = parquet.ParquetFile(path)
    except ValueError as error:  # pyarrow's errors about content are ValueErrors
        raise UserError(
            f"activations.text: {path} is not a parquet file ({_one_line(error)}): mend the file "
            "or name another."
        ) from error
    if column not in file.schema_arrow.names:
        raise _no_column(column, path, file.schema_arrow.names)
    for batch in file.iter_batches(columns=[column]):
        for value in batch.column(0).to_pylist():
            yield _text_of({column: value}, column, str(path))


def _hub_documents(source: TextSource) -> Iterator[str]:
    try:
        import datasets  # pyright: ignore[reportMissingImports] - optional
    except ImportError as error:
        raise UserError(
            f"activations.text={source.name!r} is not a local path, and reading it from the hub "
            "needs the package datasets: run `pip install 'sae-scaling[text]'`, or give a local "
            "file."
        ) from error
    try:
        rows = datasets.load_dataset(source.name, split=source.split, streaming=True)
    except Exception as error:
        raise UserError(
            f"activations.text={source.name!r} (activations.text_split={source.split!r}) cannot "
            f"be opened: it is no local path, and the hub says: {_one_line(error)}"
        ) from error
    for row in rows:
        yield _text_of(row, source.column, f"dataset {source.name}")


def _text_of(row: Any, column: str, where: str) -> str:
    value = row.get(column) if isinstance(row, dict) else None
    if not isinstance(value, str):
        raise _no_column(column, where, list(row) if isinstance(row, dict) else [])
    return value


def _no_column(column: str, where: Path | str, columns: list[str]) -> UserError:
    return UserError(
        f"activations.text_column={column!r}: {where} has no text there; its columns are "
        f"{', '.join(map(str, columns)) or 'none'}: set activations.text_column to one of them."
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
