"""fits.json: every fit of a sweep, every refusal, and what they rest on (docs/laws.md)."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.report.contents import Contents
from analysis.study.fitted import SCHEMA_VERSION, FittedLaw, to_json
from analysis.study.outliers import outliers_json
from analysis.study.study import HEADLINE_RULE, Study


def fits_json(found: Contents) -> dict[str, Any]:
    study = found.study
    return {
        "schema_version": SCHEMA_VERSION,
        "sweep": found.name,
        "n_runs": len(study.table),
        "headline": {"law": study.headline.law.name, "title": study.headline.title},
        "fits": [to_json(fit) for fit in _fits(study)],
        "not_fitted": [
            {"law": o.law.name, "title": o.title, "rows": rows, "reason": reason}
            for o in study.outcomes
            for rows, reason in o.refusals.items()
        ],
        "comparison": {
            "rule": HEADLINE_RULE,
            **(study.rivals.json() if study.rivals else {"message": "", "laws": []}),
        },
        "judged": study.judged.json() if study.judged else None,
        "outliers": outliers_json(study.outliers),
        "frontier": found.frontier_json(),
        "cautions": found.cautions,
        "falling_pairs": [{**vars(pair), "share": pair.share} for pair in study.pairs],
        "dropped": [drop._asdict() for drop in study.table.dropped],
        "cost": found.costs,
        "provenance": found.facts,
    }


def parameters_csv(found: Contents) -> str:
    """One line per fit and parameter, for a paper's table."""
    rows = [
        {
            **{"law": fitted.law.name, "title": fitted.title, "rows": fitted.rows},
            **{"parameter": name, "value": value, "se": fitted.fit.standard_errors[name]},
            **dict(zip(("low95", "high95"), fitted.ci95[name], strict=True)),
            "unit": fitted.law.units[name],
        }
        for fitted in _fits(found.study)
        for name, value in fitted.law.parameters.items()
    ]
    return pd.DataFrame(rows).to_csv(index=False)


def _fits(study: Study) -> list[FittedLaw]:
    fits = [fit for o in study.outcomes for fit in (o.tested, o.final) if fit is not None]
    if study.outliers is not None and study.outliers.without is not None:
        fits.append(study.outliers.without)
    return fits
