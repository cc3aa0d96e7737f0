"""What was found, and what concerns every law of these runs."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.laws.joint import LatentsAndK
from analysis.report import page
from analysis.report.sections.cells import share
from analysis.study.study import Study

_MOST_PAIRS = 8


def summary(study: Study) -> Iterator[str]:
    """The headline law and the four figures to read first."""
    fitted = study.headline.best_known
    values = [(str(len(study.table)), "runs used")]
    values += [
        (share(pair), f"of {pair.n_pairs} adjacent pairs: loss falls with {pair.axis}")
        for pair in study.pairs[:2]
    ]
    if fitted is None:
        yield page.cards(values)
        yield page.paragraph(
            "No law can be fitted to these runs yet; the reasons stand below, law by law.", "warn"
        )
        return
    values.append(
        (
            f"{fitted.fit.rms_log_residual:.2%}",
            f"rms log residual of {fitted.law.name}, {len(fitted.fit.table)} runs fitted",
        )
    )
    if fitted.holdout is not None:
        largest = f"{fitted.holdout.table.points['n'].max():.0f}"
        count = len(fitted.holdout.table)
        runs = f"{count} run{'s' if count > 1 else ''} held out, n = {largest}"
        values.append((f"{fitted.holdout.rms_log:.2%}", f"rms log error of {runs}"))
    if study.judged is not None:
        against = len(study.judged.found)
        values.append((str(against), "judgements stand against the law or its design, below"))
    yield page.cards(values)
    yield page.paragraph(fitted.law.formula)
    if "L(n,k)" in fitted.law.formula.partition("=")[2]:
        yield page.paragraph(f"where {LatentsAndK.formula}")


def cautions(found: dict[str, str]) -> Iterator[str]:
    """What concerns every law of these runs."""
    for code, message in found.items():
        yield page.paragraph(f"{code}: {message}", "warn")


def falling(study: Study) -> Iterator[str]:
    rows = [(pair.axis, f"{pair.n_falling} of {pair.n_pairs}", share(pair)) for pair in study.pairs]
    yield page.paragraph(
        "Pairs of runs at adjacent levels of one coordinate with all others equal. A share below "
        "100% says that noise or under-training is as large as the effect in places."
    )
    yield page.table(("along", "loss falls in", "share"), rows)
    rising = [pair for along in study.pairs for pair in along.rising]
    if rising:
        shown = "; ".join(rising[:_MOST_PAIRS])
        more = f"; and {len(rising) - _MOST_PAIRS} more" if len(rising) > _MOST_PAIRS else ""
        yield page.paragraph(f"It rises in: {shown}{more}.")
