"""Tasks of the paper whose texts are read from the Hugging Face hub, a few thousand rows of each.

Where a data set asks a question with several answers, each answer is a text of its own, and true
where it is the right one; the answers to a question stay on one side of the split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

from scaling.errors import UserError
from scaling.evaluation.tasks import Labelled, Task

ROWS = 4000
"""Read of each data set, at most: its first."""
PACKAGES = ("datasets",)
LANGUAGES = ("de", "el", "es", "fr", "it", "nl", "pt", "sv")

Row = Mapping[str, Any]
Read = Callable[[int, Row], Iterator[Labelled]]
"""Number of a row and the row, to its texts."""


def _hub(dataset: str, config: str | None, read: Read) -> Iterator[Labelled]:
    try:
        import datasets  # pyright: ignore[reportMissingImports] - optional
    except ImportError as error:
        raise UserError(
            f"probes.tasks: reading {dataset} from the hub needs the package datasets: run "
            "`pip install 'sae-scaling[text]'`."
        ) from error
    try:
        rows = datasets.load_dataset(dataset, config, split="train", streaming=True)
        first = list(islice(rows, ROWS))
    except Exception as error:
        raise UserError(
            f"probes.tasks: the hub's data set {dataset} cannot be read. Leave its task out, or "
            "give its texts in a .jsonl file of your own. The hub says: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    for number, row in enumerate(first):
        try:
            yield from read(number, row)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"probes.tasks: the hub's data set {dataset} has other columns than it had "
                f"({error!r} in {', '.join(row)}): give its texts in a .jsonl file of your own."
            ) from error


def _answers(document: str, question: str, answers: list[str], right: int) -> Iterator[Labelled]:
    for number, answer in enumerate(answers):
        yield Labelled(f"{question}\n{answer}", number == right, document)


def _quail(number: int, row: Row) -> Iterator[Labelled]:
    context, question = row["context"], row["question"]
    right = int(row["correct_answer_id"])
    yield from _answers(context, f"{context}\n{question}", row["answers"], right)


def _openbookqa(number: int, row: Row) -> Iterator[Labelled]:
    question, choices = row["question_stem"], row["choices"]
    right = choices["label"].index(row["answerKey"])
    yield from _answers(question, question, choices["text"], right)


def _social_iqa(number: int, row: Row) -> Iterator[Labelled]:
    answers = [row[f"answer{letter}"] for letter in "ABC"]
    question = f"{row['context']}\n{row['question']}"
    yield from _answers(row["context"], question, answers, int(row["label"]) - 1)


def _utilitarianism(number: int, row: Row) -> Iterator[Labelled]:
    """Which of two comes first: the pleasant one in every second row."""
    better, worse = row["baseline"], row["less_pleasant"]
    first, second = (better, worse) if number % 2 else (worse, better)
    yield Labelled(f"{first}\n{second}", bool(number % 2), better)


def _jigsaw(number: int, row: Row) -> Iterator[Labelled]:
    yield Labelled(row["comment_text"], bool(int(row["toxic"])), row["comment_text"])


def _ag_news(wanted: int, number: int, row: Row) -> Iterator[Labelled]:
    yield Labelled(row["text"], int(row["label"]) == wanted, row["text"])


def _europarl(language: str, other: str, number: int, row: Row) -> Iterator[Labelled]:
    for one in (language, other):
        yield Labelled(row["translation"][one], one == language, str(number))


def _task(name: str, about: str, dataset: str, config: str | None, read: Read) -> Task:
    return Task(name, about, partial(_hub, dataset, config, read), PACKAGES, needs_hub=True)


def _pair(language: str) -> str:
    """The data set names its pairs in the order of the alphabet."""
    return "-".join(sorted(("en", language)))


TASKS = (
    _task(
        "utilitarianism",
        "the more pleasant of two scenes comes first",
        "hendrycks/ethics",
        "utilitarianism",
        _utilitarianism,
    ),
    _task("quail", "the right answer to a text", "textmachinelab/quail", None, _quail),
    _task("openbookqa", "the right answer", "allenai/openbookqa", "main", _openbookqa),
    _task("social_iqa", "the right answer", "allenai/social_i_qa", None, _social_iqa),
    _task("jigsaw", "toxic", "Arsive/toxicity_classification_jigsaw", None, _jigsaw),
    *(
        _task(f"agnews_{topic}", f"news of {topic}", "fancyzhx/ag_news", None, partial(_ag_news, n))
        for n, topic in enumerate(("world", "sports", "business", "scitech"))
    ),
    _task(
        "europarl_en",
        "English, not French",
        "Helsinki-NLP/europarl",
        "en-fr",
        partial(_europarl, "en", "fr"),
    ),
    *(
        _task(
            f"europarl_{code}",
            f"in the language {code}, not English",
            "Helsinki-NLP/europarl",
            _pair(code),
            partial(_europarl, code, "en"),
        )
        for code in LANGUAGES
    ),
)
