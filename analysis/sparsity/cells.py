"""A comparison at equal L0 as rows of text, for pages and terminals."""

from __future__ import annotations

from analysis.sparsity.comparison import AtOneL0, Comparison
from analysis.sparsity.equal import AtL0
from analysis.uncertainty.seeds import ends_text

HEADER = ("n", "kind", "loss at L0", "95%", "against {}", "95%", "seeds", "between L0", "lr")
POWERS_HEADER = ("kind", "b in L = A n^-b", "95%", "A", "n", "rms off the line")
METHOD = (
    "Each seed's runs give a curve of loss against measured L0 (monotone, in logarithms), read at "
    "the L0; nothing is extrapolated. Intervals hold the scatter of seeds, pooled over n, and how "
    "far a curve of straight lines lies away; differences are paired by seed where seeds are "
    "shared."
)


def header(found: Comparison) -> tuple[str, ...]:
    return tuple(cell.format(found.reference) for cell in HEADER)


def rows(target: AtOneL0, reference: str) -> list[tuple[str, ...]]:
    """A line for each n and kind, by n; kinds that were not measured around the L0 say so."""
    lines = [(at.place.n_latents, at.place.arm, _row(target, at, reference)) for at in target.found]
    for place, low, high in target.outside:
        first = (str(place.n_latents), place.arm, f"not measured: L0 {low:.3g} to {high:.3g}")
        lines.append((place.n_latents, place.arm, (*first, *[""] * (len(HEADER) - 3))))
    return [row for *_, row in sorted(lines, key=lambda line: line[:2])]


def _row(target: AtOneL0, at: AtL0, reference: str) -> tuple[str, ...]:
    apart = target.difference(at, reference)
    lr = at.place.tuned[0]
    tried = f" (best of {at.tried})" if at.tried > 1 else ""
    return (
        *(str(at.place.n_latents), at.place.arm, f"{at.loss:.4g}"),
        ends_text(target.interval(at), "{:.4g}"),
        f"{apart.share:+.2%}" if apart else "",
        ends_text(apart.share_interval, "{:+.2%}") if apart else "",
        *(str(len(at.by_seed)), _between(at)),
        ("not recorded" if lr is None else f"{lr:.3g}") + tried,
    )


def power_rows(target: AtOneL0) -> list[tuple[str, ...]]:
    return [
        (
            *(law.arm, f"{law.b:.4g}", ends_text(law.b_interval, "{:.4g}"), f"{law.A:.4g}"),
            *(f"{law.sizes.min():.0f} to {law.sizes.max():.0f}", f"{law.rms_log_residual:.2%}"),
        )
        for law in target.powers
    ]


def _between(at: AtL0) -> str:
    low, high = f"{at.below:.3g}", f"{at.above:.3g}"
    return low if low == high else f"{low} to {high}"
