"""The probe tasks of Gao et al. 2024, each with where its texts come from.

Most of them, the hand-made ones among them, are in the package sae-probes (Kantamneni et al. 2025),
as they ended there: balanced, and cut where the probe is to look. The others are read from the hub
(tasks_hub.py), but one, text of GPT-2 against text of people, which has to come in a file
(docs/evaluation_probes.md).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from functools import partial

from scaling.errors import UserError
from scaling.evaluation import tasks_hub
from scaling.evaluation.tasks import Labelled, Task, package_folder

PACKAGES = ("sae-probes", "zstandard")
NAME_WORDS = 2


def _first_line(text: str) -> str:
    """The question or the story, which answers to it share."""
    return text.strip().partition("\n")[0]


def _last_words(text: str) -> str:
    """The name of whom a text is about: it ends there."""
    return " ".join(text.split()[-NAME_WORDS:])


def _packaged(file: str, positive: str, document: Callable[[str], str]) -> Iterator[Labelled]:
    """Of sae-probes: `positive` is the value of its column target that is true."""
    import zstandard  # pyright: ignore[reportMissingImports] - optional

    path = package_folder("sae-probes") / "data" / "cleaned_data" / f"{file}.csv.zst"
    if not path.is_file():
        raise UserError(f"probes.tasks: {path} is not there: run `pip install -U sae-probes`.")
    with path.open("rb") as packed:
        text = zstandard.ZstdDecompressor().stream_reader(packed).read().decode("utf-8")
    for row in csv.DictReader(io.StringIO(text, newline="")):
        yield Labelled(row["prompt"], row["target"] == positive, document(row["prompt"]))


def _task(
    name: str, about: str, file: str, positive: str, document: Callable[[str], str] = _first_line
) -> Task:
    return Task(name, about, partial(_packaged, file, positive, document), PACKAGES)


_PHRASES = (
    "high-school",
    "living-room",
    "social-security",
    "credit-card",
    "blood-pressure",
    "prime-factors",
    "social-media",
    "gene-expression",
    "control-group",
    "magnetic-field",
    "cell-lines",
    "trial-court",
    "second-derivative",
    "north-america",
    "human-rights",
    "side-effects",
    "public-health",
    "federal-government",
    "third-party",
    "clinical-trials",
    "mental-health",
)
_OCCUPATIONS = ("journalist", "athlete", "actor", "politician", "singer", "researcher")

TASKS = (
    _task("amazon", "a review of five stars", "157_amazon_5star", "1"),
    _task("sciq", "the right answer to a question of science", "36_sciq_tf", "1"),
    _task("truthfulqa", "the right answer to a treacherous question", "41_truthqa_tf", "correct"),
    _task("mc_taco", "a sensible answer about time", "42_temp_sense", "yes"),
    _task("piqa", "the second of two ways is the one that works", "44_phys_tf", "1"),
    _task("quartz", "the first of two answers is right", "47_reasoning_tf", "A"),
    _task("commonsense", "a deed that is wrong", "48_cm_correct", "1"),
    _task("deontology", "an excuse that is reasonable", "50_deon_isvalid", "1"),
    _task("justice", "a justification that is reasonable", "51_just_is", "1"),
    _task("virtue", "a trait that somebody shows", "52_virtue_is", "1"),
    _task("commonsense_qa_2", "a statement that is right", "54_cs_tf", "yes"),
    _task(
        "wikidata_sex_or_gender", "of a woman", "56_wikidatasex_or_gender", "female", _last_words
    ),
    _task(
        "wikidata_political_party",
        "of a Democrat, not a Republican",
        "58_wikidatapolitical_party",
        "Democratic Party",
        _last_words,
    ),
    _task("wikidata_isalive", "of somebody alive", "57_wikidatais_alive", "True", _last_words),
    *(
        _task(
            f"wikidata_occupation_is{occupation}",
            f"of a person who is a {occupation}",
            f"{number}_wikidata_occupation_is{occupation}",
            "1",
            _last_words,
        )
        for number, occupation in enumerate(_OCCUPATIONS, start=59)
    ),
    *(
        _task(
            f"phrase_{phrase}",
            f"ends with '{phrase.replace('-', ' ')}', not with its second word alone",
            f"{number}_{phrase}",
            "bigram",
        )
        for number, phrase in enumerate(_PHRASES, start=65)
    ),
    _task("cola", "a sentence that grammar allows", "87_glue_cola", "1"),
    *tasks_hub.TASKS,
)
