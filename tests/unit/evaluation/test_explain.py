"""N2G: its limit on a bigram, and the same by loops over single sequences and all patterns."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from scaling.errors import UserError
from scaling.evaluation.explain import FILE, Explain, Options
from scaling.evaluation.explain_bigram import bigrams
from scaling.evaluation.material import Material
from scaling.evaluation.n2g import WILDCARD, Trie, first_variant, n_variants, pattern_of
from scaling.interchange.model import LoadedAutoencoder
from scaling.interchange.portable import Portable
from tests.portables import model_of
from tests.unit.activations.conftest import ConfigMaker
from tests.unit.evaluation.small import autoencoder, material_of, subject_of

V = 12
Reading = tuple[int | None, ...]
"""A pattern in reading order; None is any token."""
SMALL = Options(contexts=60, latents=40, examples=4, shared=30, max_length=3, bigram_contexts=50)


def silent(done: int, total: int) -> None:
    del done, total


class TwoTokens:
    """A subject model whose residual stream names the last two tokens and nothing else."""

    padding = 0
    vocabulary = V

    def residual(self, ids_CT: Tensor) -> Tensor:
        now_CTV = one_hot(ids_CT, V)
        before_CTV = torch.cat([torch.zeros_like(now_CTV[:, :1]), now_CTV[:, :-1]], dim=1)
        return torch.cat([now_CTV, before_CTV], dim=2).float()

    def logits(self, ids_CT: Tensor, residual_CTD: Tensor) -> Tensor:
        del ids_CT
        return residual_CTD[..., :V] * 2.0


def of_rules(rules: list[dict[int, float]], biases: list[float]) -> LoadedAutoencoder:
    """ReLU latents of given weights on the channels of `TwoTokens`."""
    w_enc_ND = torch.zeros(len(rules), 2 * V)
    for latent, rule in enumerate(rules):
        for channel, weight in rule.items():
            w_enc_ND[latent, channel] = weight
    weights = {
        "w_enc": w_enc_ND,
        "w_dec": torch.nn.functional.normalize(w_enc_ND, dim=1),
        "b_enc": torch.tensor(biases),
        "b_pre": torch.zeros(2 * V),
    }
    portable = Portable(
        kind="relu", weights=weights, k=None, normalization="none", architecture="relu"
    )
    return model_of(portable)


@pytest.fixture
def two_tokens(harvest_config: ConfigMaker, tmp_path: Path) -> Material:
    ids_CT = torch.randint(1, V, (60, 8), generator=torch.Generator().manual_seed(0))
    material = material_of(harvest_config(), tmp_path, ids_CT)
    material.__dict__["subject"] = TwoTokens()
    return material


def test_a_latent_of_one_bigram_is_explained_wholly(two_tokens: Material, tmp_path: Path) -> None:
    bigram, word, after = {3: 1.0, V + 5: 1.0}, {4: 1.0}, {V + 6: 1.0}
    run = subject_of(of_rules([bigram, word, after], [-1.5, -0.5, -0.5]), tmp_path)
    measured = Explain().measure(run, two_tokens, SMALL, silent)
    assert measured.numbers["n2g_precision"] == measured.numbers["n2g_recall"] == 1.0
    assert measured.notes["n_latents_sampled"] == 3
    found = json.loads((tmp_path / FILE).read_text())
    patterns = [[one["tokens"] for one in found[str(i)]["patterns"]] for i in range(3)]
    assert patterns == [[[5, 3]], [[4]], [[6, None]]]
    blunt = Explain().measure(run, two_tokens, replace(SMALL, max_length=1), silent)
    assert blunt.notes["n_examples_without_pattern"] > 0


def test_perfect_explanations_lose_nothing_more_than_the_latents(
    two_tokens: Material, tmp_path: Path
) -> None:
    run = subject_of(of_rules([{i: 1.0} for i in range(V)], [-0.5] * V), tmp_path)
    measured = Explain().measure(run, two_tokens, replace(SMALL, shared=500), silent)
    assert measured.notes["activity_explained"] == 1.0
    assert measured.numbers["explanation_ce"] == pytest.approx(measured.notes["latents_ce"])
    assert measured.notes["latents_ce"] != pytest.approx(measured.notes["ce"], abs=1e-3)


def test_random_examples_are_seeded_and_other_ones(two_tokens: Material, tmp_path: Path) -> None:
    run = subject_of(autoencoder(2 * V, n_latents=30, normalization="none"), tmp_path)
    few = replace(SMALL, shared=1, examples=1)
    measures = [
        Explain().measure(run, two_tokens, replace(few, random_examples=random, seed=seed), silent)
        for random, seed in [(True, 0), (True, 0), (True, 1), (False, 0)]
    ]
    assert measures[0] == measures[1]
    recalls = [measured.numbers["n2g_recall"] for measured in measures]
    assert len({recalls[0], recalls[2], recalls[3]}) == 3


def test_an_autoencoder_that_is_silent_is_measured(two_tokens: Material, tmp_path: Path) -> None:
    run = subject_of(of_rules([{0: 1.0}], [-5.0]), tmp_path)
    measured = Explain().measure(run, two_tokens, SMALL, silent)
    assert measured.numbers["n2g_precision"] is measured.numbers["n2g_recall"] is None
    assert measured.numbers["explanation_ce"] == measured.notes["latents_ce"]


def test_suffix_and_wildcards_of_one_example() -> None:
    ids_T = np.array([7, 8, 9])
    values = np.zeros(n_variants(3), np.float32)
    values[first_variant(2)] = 0.9  # of 2.0: too little
    values[first_variant(3) :] = [1.0, 0.4, 0.6, 0.5]
    assert pattern_of(ids_T, values, 2.0, 0.5, 0.5) == (9, WILDCARD, 7)
    assert pattern_of(ids_T, values, 2.0, 0.5, 0.7) == (WILDCARD, WILDCARD, WILDCARD)[:0]
    assert pattern_of(ids_T, values, 2.1, 0.5, 0.5) is None
    trie = Trie()
    for pattern, value in [((9,), 1.0), ((9, WILDCARD, 7), 2.0), ((9, 8, 7), 5.0), ((9,), 3.0)]:
        trie.add(0, pattern, value)
    assert trie.matches(ids_T, 2) == {0: 5.0}
    assert trie.matches(np.array([7, 1, 9]), 2) == {0: 2.0}
    assert trie.matches(np.array([1, 9, 9]), 2) == trie.matches(np.array([9]), 0) == {0: 2.0}
    assert trie.matches(np.array([7, 1, 8]), 2) == {}


class Loops:
    """All of it once more: a forward pass per sequence, every pattern tried at every token."""

    def __init__(self, material: Material, sae: LoadedAutoencoder, options: Options) -> None:
        self.subject, self.sae, self.options = material.subject, sae, options
        self.ids = material.ids_CT
        self.residual = self.subject.residual(self.ids)
        self.max_norm = material.held_out.max_norm
        self.kept = self.residual.norm(dim=2) <= self.max_norm
        self.kept[:, 0] = False
        self.z = sae.latents(self.residual) * self.kept[:, :, None]
        places = [(c, t) for c, t in self.kept.nonzero().tolist()]
        self.build = [(c, t) for c, t in places if c % 2 == 0]
        self.test = [(c, t) for c, t in places if c % 2 == 1]
        self.seen: dict[tuple[int, ...], Tensor] = {}
        self.of_all: dict[int, dict[Reading, list[float]]] = {n: {} for n in range(len(sae.w_dec))}
        self.of_top: dict[int, set[Reading]] = {n: set() for n in range(len(sae.w_dec))}
        self._explain()

    def _explain(self) -> None:
        rng = np.random.default_rng(self.options.seed)
        probed = set(map(tuple, rng.permutation(np.array(self.build))[: self.options.shared]))
        tops = {n: self._top(n) for n in self.sampled()}
        for c, t in sorted(probed | {place for own in tops.values() for place in own}):
            for n in self.z[c, t].nonzero()[:, 0].tolist():
                if (pattern := self._pattern(c, t, n)) is not None:
                    self.of_all[n].setdefault(pattern, []).append(float(self.z[c, t, n]))
                    if (c, t) in tops.get(n, []):
                        self.of_top[n].add(pattern)

    def sampled(self) -> list[int]:
        return [
            n for n in self.of_all if self._active(n, self.build) and self._active(n, self.test)
        ]

    def _active(self, n: int, places: list[tuple[int, int]]) -> set[tuple[int, int]]:
        return {(c, t) for c, t in places if self.z[c, t, n] > 0}

    def _top(self, n: int) -> list[tuple[int, int]]:
        ranked = sorted(
            self._active(n, self.build), key=lambda at: (-float(self.z[at[0], at[1], n]), at)
        )
        return ranked[: self.options.examples]

    def _value(self, tokens: list[int], n: int) -> float:
        if (key := tuple(tokens)) not in self.seen:
            ids = torch.tensor([[self.subject.padding, *tokens]])
            x_1D = self.subject.residual(ids)[0, -1:]
            self.seen[key] = self.sae.latents(x_1D)[0] * (x_1D.norm() <= self.max_norm)
        return float(self.seen[key][n])

    def _pattern(self, c: int, t: int, n: int) -> Reading | None:
        for m in range(1, min(self.options.max_length, t + 1) + 1):
            suffix: list[int] = self.ids[c, t - m + 1 : t + 1].tolist()
            if (whole := self._value(suffix, n)) >= 0.5 * float(self.z[c, t, n]):
                out: list[int | None] = []
                for j, token in enumerate(suffix):
                    padded = [*suffix[:j], self.subject.padding, *suffix[j + 1 :]]
                    is_free = self._value(padded, n) > 0.5 * whole
                    out += [] if is_free and not out else [None if is_free else token]
                return tuple(out)
        return None

    def fits(self, pattern: Reading, c: int, t: int) -> bool:
        start = t + 1 - len(pattern)
        there = self.ids[c, max(start, 0) : t + 1].tolist()
        return start >= 0 and all(p in (None, s) for p, s in zip(pattern, there, strict=True))

    def rates(self) -> tuple[float, float]:
        precisions, recalls = [], []
        for n in self.sampled():
            said = {at for at in self.test if any(self.fits(p, *at) for p in self.of_top[n])}
            true = self._active(n, self.test)
            recalls.append(len(said & true) / len(true))
            precisions += [len(said & true) / len(said)] if said else []
        return float(np.mean(precisions)), float(np.mean(recalls))

    def cross_entropy(self) -> float:
        s = torch.zeros_like(self.z)
        for c, t in self.build + self.test:
            for n, patterns in self.of_all.items():
                own = [p for p in patterns if self.fits(p, c, t)]
                if own:
                    best = max(own, key=lambda p: (len(p), sum(x is not None for x in p)))
                    s[c, t, n] = float(np.mean(patterns[best]))
        scale_N = (s * self.z)[::2].sum((0, 1)) / (s * s)[::2].sum((0, 1)).clamp_min(1e-9)
        x, kept, ids = self.residual[1::2], self.kept[1::2], self.ids[1::2]
        mean = x.mean(-1, keepdim=True)
        recon = (s * scale_N)[1::2] @ self.sae.w_dec + self.sae.b_pre
        recon = recon * (x - mean).norm(dim=-1, keepdim=True) + mean
        with torch.no_grad():
            logits = self.subject.logits(ids, torch.where(kept[:, :, None], recon, x))[:, :-1]
        return float(cross_entropy(logits[kept[:, :-1]], ids[:, 1:][kept[:, :-1]]))


def test_it_is_what_loops_over_single_sequences_give(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    ids_CT = torch.randint(1, 12, (10, 8), generator=torch.Generator().manual_seed(1))
    material = material_of(harvest_config(), tmp_path, ids_CT, max_norm=11)
    sae = autoencoder(16)
    options = replace(SMALL, contexts=10, shared=15, examples=2)
    measured = Explain().measure(subject_of(sae, tmp_path), material, options, silent)
    loops = Loops(material, sae, options)
    assert 0.7 < float(loops.kept[:, 1:].float().mean()) < 0.95
    precision, recall = loops.rates()
    assert measured.numbers == {
        "n2g_precision": pytest.approx(precision),
        "n2g_recall": pytest.approx(recall),
        "explanation_ce": pytest.approx(loops.cross_entropy(), rel=1e-5),
    }
    assert 0 < precision < 1
    assert sum(map(len, loops.of_all.values())) > 30
    assert measured.notes["n_latents_sampled"] == len(loops.sampled())


def test_the_bigram_model_is_a_distribution_and_its_own_formula() -> None:
    contexts = np.array([[1, 2, 1, 2], [1, 3, 3, 0]], np.int32)
    model = bigrams(contexts, 5)
    everything = np.arange(5)
    for first in range(5):
        ce = model.cross_entropy(np.full(5, first), everything)
        assert np.exp(-ce).sum() == pytest.approx(1)
    # After 1: 2 twice, 3 once; as second tokens 2 comes 2 times of 6, and 4 of 5 tokens come.
    unigram = (2 + 4 / 5) / (6 + 4)
    expected = -math.log((2 + 2 * unigram) / (3 + 2))
    assert model.cross_entropy(np.array([1]), np.array([2]))[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(examples=0), "explain.examples=0 must be at least 1"),
        (Options(contexts=1), "explain.contexts=1 must be at least 2"),
        (Options(ratio=1.0), "explain.ratio=1.0 must be between 0 and 1"),
    ],
)
def test_what_cannot_be_is_refused(options: Options, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Explain().settings(options)
