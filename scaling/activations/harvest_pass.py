"""One pass over the text for layers that lack the same vectors."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from scaling.activations.contexts import TokenizedText, load_tokenized, save_tokenized, tokenize
from scaling.activations.crew import Job, ProcessCrew, SerialCrew, node_crew
from scaling.activations.manifest import SPLITS, Manifest, Segment, load_manifest, save_manifest
from scaling.activations.parts import Part
from scaling.activations.progress import Meter
from scaling.activations.request import HarvestRequest
from scaling.activations.segment import (
    PartSet,
    calibrate,
    median_norm,
    n_kept,
    write_segment,
)
from scaling.activations.shared_crew import SharedCrew
from scaling.activations.stream_contexts import has_contexts, write_contexts
from scaling.activations.stream_shape import StreamShape, largest_n_train
from scaling.errors import UserError


class HarvestPass:
    """Makes the parts that `need` asks for, then commits them layer by layer."""

    def __init__(
        self,
        request: HarvestRequest,
        model: Path,
        layers: tuple[int, ...],
        need: dict[str, tuple[int, int]],
        meter: Meter,
    ) -> None:
        self.layers = layers
        self._request = request
        self._recipe = request.recipe
        self._model = model
        self._meter = meter
        self._first = {split: first for split, (first, _) in need.items()}
        self._n_rows = {split: n_rows for split, (_, n_rows) in need.items()}
        self._stop = {s: self._first[s] + self._n_parts(self._n_rows[s]) for s in SPLITS}

    def make_parts(self) -> None:
        """Harvest until every layer has the vectors it lacks.

        Outliers are known only afterwards; where they leave too little, further parts follow.
        """
        self._require_text(self._tokenize())
        self._harvest()
        while short := self._shortfall():
            self._plan_further_parts(short)
            self._harvest()

    def commit(self, layer: int) -> None:
        """Turn the parts of one layer into segments of its store."""
        store = self._request.store(layer)
        store.mkdir(exist_ok=True)
        segments = {split: self._segment(store, split, layer) for split in SPLITS}
        manifest = load_manifest(store) or self._new_manifest(store, layer, segments["train"])
        save_manifest(
            store,
            replace(
                manifest,
                train=[*manifest.train, *filter(None, [segments["train"]])],
                eval=[*manifest.eval, *filter(None, [segments["eval"]])],
            ),
        )

    def _n_parts(self, n_rows: int) -> int:
        return self._recipe.parts_for(n_rows)

    def _tokenize(self) -> TokenizedText:
        """The contexts of all planned parts, from the work folder or from the text."""
        wanted = {split: stop * self._recipe.part_contexts for split, stop in self._stop.items()}
        return _tokenized(self._request, self._model, wanted, self._meter)

    def _require_text(self, tokenized: TokenizedText) -> None:
        """Refuse what the text cannot give before spending anything on it."""
        for split in SPLITS:
            n_contexts = len(tokenized.contexts[split])
            # The text's last part may be short: then less than nothing is left after it.
            unused = max(0, n_contexts - self._first[split] * self._recipe.part_contexts)
            if self._n_rows[split] > unused * self._recipe.rows_per_context:
                held = self._request.wanted[split] - self._n_rows[split]
                available = held + unused * self._recipe.rows_per_context
                raise self._too_little_text(split, available, "at most ")

    def _plan_further_parts(self, short: dict[str, int]) -> None:
        harvested = dict(self._stop)
        for split, n_rows in short.items():
            self._stop[split] += self._n_parts(n_rows)
        tokenized = self._tokenize()
        for split, n_rows in short.items():
            n_parts = -(-len(tokenized.contexts[split]) // self._recipe.part_contexts)
            self._stop[split] = min(self._stop[split], n_parts)
            if self._stop[split] == harvested[split]:
                raise self._too_little_text(split, self._request.wanted[split] - n_rows)

    def _too_little_text(self, split: str, available: int, bound: str = "") -> UserError:
        key = "max_tokens" if split == "train" else "eval_tokens"
        share = self._recipe.eval_fraction
        which = f"documents held out by activations.eval_fraction={share:g}"
        remedy = (
            f"lower it to {available} (a run may train on them several times: train.tokens)"
            if split == "train"
            else "lower it or raise activations.eval_fraction"
        )
        return UserError(
            f"activations.{key}={self._request.wanted[split]} is more than "
            f"activations.text={self._request.text.name!r} gives: {bound}{available} vectors "
            f"{'beside the' if split == 'train' else 'from the'} {which}, in contexts of "
            f"{self._recipe.context} tokens of one document. Give more text, or {remedy}."
        )

    def _harvest(self) -> None:
        """Make the planned parts that no earlier attempt has made."""
        parts = [Part(s, n) for s in SPLITS for n in range(self._first[s], self._stop[s])]
        todo = [part for part in parts if not part.is_done(self._request.work, self.layers)]
        if not todo:
            return
        done = self._tokens(parts) - self._tokens(todo)
        total = self._tokens(parts)

        def on_tokens(tokens: int) -> None:
            nonlocal done
            done += tokens
            self._meter.tell("harvest", done, total, "tokens")

        self._meter.tell("harvest", done, total, "tokens")
        with self._crew(len(todo)) as crew:
            crew.harvest(todo, on_tokens)

    def _tokens(self, parts: list[Part]) -> int:
        tokenized = load_tokenized(self._request.work)
        assert tokenized is not None
        n_contexts = sum(
            len(part.contexts(tokenized.contexts[part.split], self._recipe)) for part in parts
        )
        return n_contexts * self._recipe.rows_per_context

    def _crew(self, n_parts: int) -> SerialCrew | ProcessCrew | SharedCrew:
        job = Job(self._model, self.layers, self._recipe, self._request.work)
        make = partial(node_crew, processes=self._request.processes)
        if self._request.nodes > 1:
            return SharedCrew(job, self._request.nodes, lambda p: self._tokens([p]), make)
        return make(job, n_parts)

    def _part_set(self, split: str, layer: int) -> PartSet:
        return PartSet(
            work=self._request.work,
            split=split,
            layer=layer,
            d_model=self._request.model_shape[0],
            dtype=self._recipe.store_dtype,
            first=self._first[split],
            stop=self._stop[split],
        )

    def _shortfall(self) -> dict[str, int]:
        """Split to the vectors that the layer with the most outliers still lacks."""
        lacking = {
            split: max(self._lacking(split, each) for each in self.layers) for split in SPLITS
        }
        return {split: n_rows for split, n_rows in lacking.items() if n_rows > 0}

    def _lacking(self, split: str, layer: int) -> int:
        kept = n_kept(self._part_set(split, layer), self._max_norm(layer))
        return self._n_rows[split] - kept

    def _max_norm(self, layer: int) -> float:
        return self._recipe.outlier_factor * self._median_norm(layer)

    def _median_norm(self, layer: int) -> float:
        manifest = load_manifest(self._request.store(layer))
        if manifest is not None:
            return manifest.median_norm
        return median_norm(self._part_set("train", layer))

    def _segment(self, store: Path, split: str, layer: int) -> Segment | None:
        n_rows = self._n_rows[split]
        if not n_rows:
            return None
        return write_segment(
            store,
            self._part_set(split, layer),
            n_rows=n_rows,
            max_norm=self._max_norm(layer),
            recipe=self._recipe,
            progress=lambda done: self._meter.tell("shuffle", done, n_rows, "tokens"),
        )

    def _new_manifest(self, store: Path, layer: int, train: Segment | None) -> Manifest:
        assert train is not None, "a new store begins with training vectors"
        d_model = self._request.model_shape[0]
        return Manifest(
            recipe=self._recipe.to_json(),
            layer=layer,
            d_model=d_model,
            dtype=self._recipe.store_dtype,
            median_norm=self._median_norm(layer),
            calibration=calibrate(store, train, d_model, self._recipe.store_dtype),
            names={**self._request.names, "params": self._request.subject_params},
        )


def keep_contexts(request: HarvestRequest, shape: StreamShape, model: Path, meter: Meter) -> None:
    """Keep the token ids that a live stream will read, unless they are there.

    Raises:
        UserError: the text does not give as many.
    """
    if has_contexts(request.contexts):
        return
    recipe = request.recipe
    wanted = {
        split: recipe.parts_for(n_rows) * recipe.part_contexts
        for split, n_rows in request.wanted.items()
    }
    wanted["train"] = max(wanted["train"], shape.n_contexts)
    found = _tokenized(request, model, wanted, meter).contexts["train"]
    if len(found) < shape.n_contexts:
        raise _too_little_for_a_stream(request, shape, len(found))
    write_contexts(request.contexts, np.asarray(found[: shape.n_contexts]))


def _tokenized(
    request: HarvestRequest, model: Path, wanted: dict[str, int], meter: Meter
) -> TokenizedText:
    """At least the wanted contexts (or all there are), from the work folder or from the text."""
    kept = load_tokenized(request.work)
    if kept is not None and kept.suffices(wanted):
        return kept
    from scaling.activations.subject import Tokenizer

    tokenized = tokenize(
        request.text,
        Tokenizer(model),
        request.recipe,
        wanted,
        lambda done: meter.tell("tokenize", done, 0, "characters"),
    )
    save_tokenized(request.work, tokenized)
    return tokenized


def _too_little_for_a_stream(
    request: HarvestRequest, shape: StreamShape, n_contexts: int
) -> UserError:
    largest = largest_n_train(n_contexts, shape.buffer_tokens, request.recipe)
    return UserError(
        f"activations.max_tokens={shape.n_train} with activations.stream=true needs "
        f"{shape.n_contexts} contexts of {request.recipe.context} tokens, and "
        f"activations.text={request.text.name!r} gives {n_contexts} beside the documents held out "
        f"by activations.eval_fraction={request.recipe.eval_fraction:g}: give more text, or lower "
        f"it to {largest} (a run may train on them several times: train.tokens)."
    )
