"""N2G: its limit on a bigram, and the same by loops over single sequences and all patterns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from scaling.errors import UserError
from scaling.evaluation import explain, explain_patterns, kept, n2g_probe
from scaling.evaluation.estimate import Estimate
from scaling.evaluation.explain import FILE, Explain, Options
from scaling.evaluation.explain_activity import pairs
from scaling.evaluation.explain_bigram import bigrams, training_contexts
from scaling.evaluation.explain_ce import Baselines
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Measured
from scaling.evaluation.n2g import WILDCARD, Trie, first_variant, n_variants, pattern_of
from scaling.evaluation.n2g_probe import Probed, probed
from scaling.interchange.model import LoadedAutoencoder
from scaling.interchange.portable import Portable
from tests.portables import model_of
from tests.unit.activations.conftest import ConfigMaker
from tests.unit.evaluation.drawn import check_drawn
from tests.unit.evaluation.explain_loops import Loops, Losses, error_of, mean_of
from tests.unit.evaluation.small import autoencoder, material_of, subject_of

V = 12
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
    latents = measured.baselines["explanation_ce"]["latents"]
    assert measured.notes["activity_explained"] == 1.0
    assert measured.numbers["explanation_ce"] == pytest.approx(latents.value)
    assert latents.difference == pytest.approx(0, abs=1e-5)
    assert latents.value != pytest.approx(measured.notes["ce"], abs=1e-3)


def test_its_error_is_over_the_documents_tested(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    ids_CT = torch.randint(1, V, (60, 8), generator=torch.Generator().manual_seed(0))
    documents = [0] * 30 + list(range(1, 31))  # the large one builds
    material = material_of(harvest_config(), tmp_path, ids_CT, documents=documents)
    material.__dict__["subject"] = TwoTokens()
    run = subject_of(autoencoder(2 * V, normalization="none"), tmp_path)
    measured = Explain().measure(run, material, SMALL, silent)
    assert len(measured.draws["explanation_ce"]) == 30
    assert set(measured.draws) == {"explanation_ce"}, "latents are each run's own"


def test_each_share_is_of_its_own_cross_entropy(
    two_tokens: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Baselines, "recovered", lambda _, ce: ce)
    run = subject_of(autoencoder(2 * V, normalization="none"), tmp_path)
    measured = Explain().measure(run, two_tokens, SMALL, silent)
    beside, notes = measured.baselines["explanation_ce"], measured.notes
    assert notes["recovered"] == measured.numbers["explanation_ce"]
    assert notes["latents_recovered"] == beside["latents"].value
    assert notes["bigram_recovered"] == beside["bigrams"].value
    assert len({notes["recovered"], notes["latents_recovered"], notes["bigram_recovered"]}) == 3


def test_recovered_is_the_share_of_what_the_mean_vector_loses() -> None:
    two, six = (Estimate.mean([ce], "contexts") for ce in (2.0, 6.0))
    assert Baselines(two, six, six, 1).recovered(3.0) == 0.75
    assert Baselines(two, two, six, 1).recovered(3.0) is None


def test_tokens_that_predict_nothing_are_refused() -> None:
    two, nothing = Estimate.mean([2.0], "contexts"), Estimate.ratio([0.0], [0], "contexts")
    with pytest.raises(UserError, match=r"explain\.contexts: no token"):
        Baselines(nothing, two, two, 1).recovered(3.0)


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


def test_tokens_are_probed_once_for_runs_of_any_command(
    harvest_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids_CT = torch.randint(1, 12, (10, 8), generator=torch.Generator().manual_seed(1))
    run = subject_of(autoencoder(16), tmp_path)
    n_probed: list[int] = []

    def counted(material: Material, tokens: np.ndarray, *rest: Any) -> Probed:
        n_probed.append(len(tokens))
        return probed(material, tokens, *rest)

    for module in (explain_patterns, n2g_probe):
        monkeypatch.setattr(module, "probed", counted)

    def measured(**options: int) -> tuple[Measured, list[int]]:
        n_probed.clear()
        asked = {"contexts": 10, "shared": 15, "examples": 2, **options}
        # Of another command.
        material = material_of(harvest_config(), tmp_path, ids_CT[: asked["contexts"]])
        return Explain().measure(run, material, replace(SMALL, **asked), silent), [*n_probed]

    first, (n_shared, n_own) = measured()
    assert (n_shared, n_own > 0) == (15, True)
    again, of_this_run = measured()
    assert (again, of_this_run) == (first, [n_own])
    [file] = (tmp_path / "n2g").iterdir()
    file.write_bytes(file.read_bytes()[:100])  # damaged: made again
    assert measured() == (first, [15, n_own])
    for options in ({"seed": 1}, {"max_length": 2}, {"shared": 14}, {"contexts": 8}):
        assert len(measured(**options)[1]) == 2, options
    assert len(list(file.parent.iterdir())) == 5
    monkeypatch.setattr(kept, "write_bytes", _refused)  # a full disk costs time alone
    file.unlink()
    assert measured() == (first, [15, n_own])
    assert not file.exists()


def _refused(path: Path, data: bytes) -> None:
    raise UserError(f"the disk is full while writing {path} of {len(data)} bytes")


def test_an_autoencoder_that_is_silent_is_measured(two_tokens: Material, tmp_path: Path) -> None:
    run = subject_of(of_rules([{0: 1.0}], [-5.0]), tmp_path)
    measured = Explain().measure(run, two_tokens, SMALL, silent)
    assert measured.numbers["n2g_precision"] is measured.numbers["n2g_recall"] is None
    latents = measured.baselines["explanation_ce"]["latents"]
    assert (measured.numbers["explanation_ce"], 0.0) == latents[:2]
    assert set(measured.notes["undefined"]) == {"n2g_precision", "n2g_recall"}


def test_a_text_of_one_context_is_too_little(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    """There may be fewer than explain.contexts."""
    material = material_of(harvest_config(), tmp_path, torch.arange(1, 9)[None])
    material._made[f"{SMALL.contexts} contexts"] = material
    with pytest.raises(UserError, match="1 held-out contexts are too few"):
        Explain().measure(subject_of(autoencoder(16), tmp_path), material, SMALL, silent)


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


def test_it_is_what_loops_over_single_sequences_give(
    harvest_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "N_TOP", 1)
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
        "explanation_ce": pytest.approx(mean_of(loops.cross_entropy()), rel=1e-5),
    }
    assert 0 < precision < 1
    assert sum(map(len, loops.of_all.values())) > 30
    assert measured.notes["n_latents_sampled"] == len(loops.sampled())
    _check_notes(measured.notes, loops)
    _check_errors(measured, loops, loops.bigram_ce(training_contexts(material, 50).tolist()))
    assert measured.notes["top_precision"] != pytest.approx(precision)


def _check_errors(measured: Measured, loops: Loops, bigrams_ce: Losses) -> None:
    """Of explanation_ce and of its distance from baselines: of contexts of unlike lengths."""
    check_drawn(measured)
    own = loops.cross_entropy()
    assert len({len(one) for one in own}) > 1
    error = measured.standard_errors["explanation_ce"].value
    assert error == pytest.approx(error_of(own), rel=1e-3)
    beside = {"bigrams": bigrams_ce, "latents": loops.baselines()["latents_ce"]}
    found = measured.baselines["explanation_ce"]
    assert set(found) == set(beside)
    ce = mean_of(own)
    for name, losses in beside.items():
        mean = mean_of(losses)
        expected = (mean, ce - mean, error_of(own, losses))
        assert tuple(found[name]) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def _check_notes(notes: Mapping[str, Any], loops: Loops) -> None:
    top_precision, top_recall = loops.rates(n_top=1)
    said, z = loops.said()[1::2], loops.z[1::2]
    known = loops.baselines()
    expected = {
        **{name: mean_of(known[name]) for name in ("ce", "ce_mean")},
        "top_precision": top_precision,
        "top_recall": top_recall,
        "activity_explained": float(z[said > 0].sum() / z.sum()),
    }
    assert {name: notes[name] for name in expected} == pytest.approx(expected, rel=1e-4)


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


def test_a_latent_that_rounding_takes_away_leaves_the_others_in_the_sample() -> None:
    """Drawn from a list of those eligible, one less would move all behind it."""
    n = 200
    latents = np.arange(0, n, 2)
    everywhere = pairs(latents, np.zeros_like(latents), np.ones(len(latents), np.float32), 1)
    options = replace(SMALL, latents=20)
    before, n_before = explain_patterns.sample(everywhere, everywhere, n, options)
    fewer = everywhere.where(everywhere.latents_P != before[3])
    after, n_after = explain_patterns.sample(fewer, everywhere, n, options)
    assert (n_before, n_after, len(before), len(after)) == (100, 99, 20, 20)
    assert len(np.intersect1d(before, after)) == 19
    assert np.isin(before, latents).all()
