"""The files of a site: three fixed ones, and data as scripts that a page loads from any place.

    index.html, viewer.css, viewer*.js   the same for every run
    data/site.js                         the run, and a few numbers of every latent in typed arrays
    data/tokens.js, data/contexts.js     the vocabulary and the text
    data/latents_0000.js, ...            all else, CHUNK latents a file, loaded when looked at

Browsers refuse to fetch JSON beside a page opened from a disk, but run scripts: each file is one
call with plain data. It is ASCII, with `<` escaped, so no text can end the script; pages put text
in as text, never as markup.
"""

from __future__ import annotations

import base64
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from scaling.errors import UserError
from scaling.storage.atomic import atomic_folder, read_json, write_json
from scaling.viewer.activity import Array
from scaling.viewer.look import Json, Look, peak_tokens

CHUNK = 256
"""Latents in a file."""
N_LABELS = 5
"""Tokens of a latent in the list and for the search: of either kind."""
ASSETS = ("index.html", "viewer.css", "viewer.js", "viewer_list.js", "viewer_map.js")
MARK = "made.json"
"""What a folder of ours has: the identity of what it shows."""
VERSION = 3
"""Raise it when the same run would be shown otherwise."""


def check_target(folder: Path) -> None:
    """Raises `UserError` where `folder` holds something that is no site of ours."""
    if folder.exists() and not (folder / MARK).exists():
        raise UserError(f"--out={folder} is there and is no site of ours: name another folder.")


def is_made(folder: Path, identity: str) -> bool:
    """Whether the site of that identity is there."""
    return (folder / MARK).exists() and read_json(folder / MARK) == {"identity": identity}


def write_site(folder: Path, look: Look, run: Mapping[str, Any], identity: str) -> None:
    """Write the site, whole or not at all; one that is there is replaced. `run` is JSON.

    Raises:
        UserError: something else is there, or the disk is full.
    """
    check_target(folder)
    with _replacing(folder), atomic_folder(folder) as temp:
        (temp / "data").mkdir()
        write_json(temp / MARK, {"identity": identity})
        for name in ASSETS:
            content = resources.files("scaling.viewer").joinpath("assets", name).read_bytes()
            (temp / name).write_bytes(content)
        for name, arguments in _scripts(look, run):
            function = name.split("_")[0]
            (temp / "data" / f"{name}.js").write_text(_call(function, *arguments), "ascii")
        if folder.exists():
            folder.rename(_aside(folder))


@contextmanager
def _replacing(folder: Path) -> Iterator[None]:
    """The site that was there goes when the block is done, and comes back if that fails. It is
    moved aside whole: killed while it was removed in place, its rest would look like no site."""
    before = _aside(folder)
    _remove(before)  # a killed one's
    try:
        yield
    except BaseException:
        if before.exists() and not folder.exists():
            before.rename(folder)
        raise
    _remove(before)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.before")


def _remove(site: Path) -> None:
    # The folder may be a link to where the user wants the site: that is not ours to empty.
    if site.is_symlink():
        site.unlink()
    elif site.exists():
        shutil.rmtree(site)


def _scripts(look: Look, run: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """File names without ending, and what the function of that name is called with."""
    yield "site", (_site(look, run),)
    yield "tokens", (list(look.tokens),)
    yield "contexts", (_contexts(look),)
    latents = _Latents(look)
    for number in range(math.ceil(look.activity.n_latents / CHUNK)):
        yield f"latents_{number:04d}", (number, latents.chunk(number))


def _call(function: str, *arguments: Any) -> str:
    written = ",".join(
        json.dumps(argument, separators=(",", ":"), allow_nan=False) for argument in arguments
    )
    return f"viewer.{function}({written.replace('<', chr(92) + 'u003c')});\n"


def packed(values: Array) -> Json:
    """A JavaScript typed array, little-endian, in base 64: floats as float32, else as few bytes as
    hold them."""
    if np.issubdtype(values.dtype, np.floating):
        name, kind = "Float32Array", "<f4"
    else:
        largest = int(values.max(initial=0))
        bits = 8 if largest < 2**8 else 16 if largest < 2**16 else 32
        name, kind = f"Uint{bits}Array", f"<u{bits // 8}"
    raw = np.ascontiguousarray(values.ravel(), dtype=kind).tobytes()
    return {"type": name, "data": base64.b64encode(raw).decode("ascii")}


def rounded(value: float) -> float:
    """To four digits: what is shown."""
    return float(f"{value:.4g}")


def _site(look: Look, run: Mapping[str, Any]) -> Json:
    none = len(look.tokens)  # a token that there is not
    fires_NS = peak_tokens(look, N_LABELS)
    promotes_NS = look.promoted.ids_NS[:, :N_LABELS].numpy()
    n_contexts, context = look.material.ids_CT.shape
    return {
        "run": dict(run),
        "n_latents": look.activity.n_latents,
        "chunk": CHUNK,
        "context": context,
        "n_contexts": n_contexts,
        "n_tokens": look.activity.n_tokens,
        "normalization": look.normalization,
        "has_final_norm": look.has_final_norm,
        "factor": rounded(look.scale.factor),
        "length": rounded(look.scale.length),
        "plane": look.plane_about,
        "x": packed(look.plane_N2[:, 0].numpy()),
        "y": packed(look.plane_N2[:, 1].numpy()),
        "columns": [
            {
                "key": column.key,
                "label": column.label,
                "about": column.about,
                "on": column.on,
                "values": packed(np.asarray(column.values_N, np.float32)),
            }
            for column in look.columns
        ],
        "no_token": none,
        "fires": packed(np.where(fires_NS < 0, none, fires_NS)),
        "promotes": packed(promotes_NS),
        "n_fires": fires_NS.shape[1],
        "n_promotes": promotes_NS.shape[1],
    }


def _contexts(look: Look) -> Json:
    kept = [batch.kept_CT.cpu().numpy() for batch in look.material.batches()]
    return {
        "ids": packed(look.material.ids_CT.numpy()),
        "kept": packed(np.concatenate(kept).astype(np.uint8)),
    }


class _Latents:
    """The chunks of a look."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._histograms = look.activity.histograms()
        # Where each latent's examples begin: both lists are by latent.
        self._latents = np.arange(look.activity.n_latents + 1)
        self._top = np.searchsorted(look.contexts.latent_P[look.top], self._latents)
        self._drawn = np.searchsorted(look.contexts.latent_P[look.drawn], self._latents)

    def chunk(self, number: int) -> list[Json]:
        last = min((number + 1) * CHUNK, self._look.activity.n_latents)
        return [self._latent(latent) for latent in range(number * CHUNK, last)]

    def _latent(self, latent: int) -> Json:
        look = self._look
        top = look.top[self._top[latent] : self._top[latent + 1]]
        drawn = look.drawn[self._drawn[latent] : self._drawn[latent + 1]]
        made: Json = {
            "histogram": self._histograms[latent].tolist(),
            "top": [self._example(pair) for pair in top],
            "random": [self._example(pair) for pair in drawn],
            "promoted": _ranked(look.promoted, latent),
            "suppressed": _ranked(look.suppressed, latent),
            "neighbours": _ranked(look.neighbours, latent),
        }
        if latent in look.patterns:
            made["patterns"] = [
                {**one, "value": rounded(one["value"])} for one in look.patterns[latent]
            ]
        return made

    def _example(self, pair: int) -> list[Any]:
        """[context, positions, activations] of the active tokens within."""
        look = self._look
        within = slice(look.contexts.start_P[pair], look.contexts.end_P[pair])
        positions = look.activity.token_E[within] % look.activity.context
        values = [rounded(value) for value in look.activity.value_E[within].tolist()]
        return [int(look.contexts.context_P[pair]), positions.tolist(), values]


def _ranked(ranked: Any, latent: int) -> list[list[float]]:
    """[id, value] pairs."""
    ids, values = ranked.ids_NS[latent].tolist(), ranked.values_NS[latent].tolist()
    return [[number, rounded(value)] for number, value in zip(ids, values, strict=True)]
