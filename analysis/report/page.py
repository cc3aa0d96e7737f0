"""The report as one self-contained HTML page: inline drawings, no scripts, nothing to download."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from html import escape

import matplotlib as mpl
from matplotlib.figure import Figure

from analysis.report.plots.style import INK

_CSS = """
:root { color-scheme: light dark; --text: #1c1e21; --soft: #5c6370; --back: #ffffff;
  --panel: #f4f5f7; --line: #d9dce1; --warn: #9a5b00; --good: #1c7c54; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6ea; --soft: #9aa1ad; --back: #15171b;
  --panel: #1e2127; --line: #343943; --warn: #e0a13c; --good: #5cc59a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--back);
  color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, ul { margin: .5rem 0; } .soft { color: var(--soft); } .warn { color: var(--warn); }
code { font-family: ui-monospace, monospace; font-size: .88em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .28rem .9rem .28rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); white-space: nowrap; } td.n { white-space: nowrap; }
td:not(.n) { min-width: 12rem; }
.cards { display: grid; gap: .8rem; margin: 1.2rem 0;
  grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr)); }
.card { background: var(--panel); border-radius: .5rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.35rem; font-weight: 600; } .card span { font-size: .85rem; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; color: var(--text); }
figcaption { font-size: .9rem; color: var(--soft); }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--soft); }
.law { background: var(--panel); border-radius: .5rem; padding: .2rem 1.1rem .8rem;
  margin: 1rem 0; }
"""

_CARD = '<div class="card">{}</div>'


def page(title: str, body: Iterable[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def figure(drawing: Figure | None, caption: str) -> str:
    """An inline SVG in the page's own text color, or the caption alone where there is none."""
    if drawing is None:
        return f'<p class="soft">{escape(caption)}</p>'
    caption = f"<figcaption>{escape(caption)}</figcaption>"
    return f"<figure>{_inline_svg(drawing)}{caption}</figure>"


def _inline_svg(drawing: Figure) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "analysis"}):
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing.set_layout_engine("none")  # laid out now: saved again, it keeps its places, and sooner
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # The view box keeps the proportions; fixed sizes would keep the page from scaling it.
    return re.sub(r'(<svg [^>]*?)width="[^"]*"([^>]*?)height="[^"]*"', r"\1\2", svg, count=1)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are plain text; columns after the first hold numbers and do not wrap when short."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _cell(text: str) -> str:
    short = ' class="n"' if len(text) <= 32 else ""
    return f"<td{short}>{escape(text)}</td>"


def cards(values: Iterable[tuple[str, str]]) -> str:
    """Big figures with what they are: (value, label)."""
    items = [f"<b>{escape(value)}</b><span>{escape(label)}</span>" for value, label in values]
    return f'<div class="cards">{"".join(_CARD.format(item) for item in items)}</div>'


def panel(inner: str) -> str:
    """`inner` is HTML already."""
    return f'<div class="law">{inner}</div>'


def folded(summary: str, inner: str) -> str:
    """A part that opens on a click; `inner` is HTML already."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"
