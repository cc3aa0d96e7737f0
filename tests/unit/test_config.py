"""Every group and sweep composes; every mistake is named with its key and a remedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra.errors import HydraException

from scaling.autoencoder_config import TopKConfig
from scaling.command_line import explain
from scaling.config import HarvestConfig, PlantedConfig
from scaling.errors import UserError
from scaling.sweep.footprint import check_memory
from scaling.sweep.grid import evaluate, keep_wanted
from scaling.sweep.validate import check_folders, check_numbers, check_shared, validate
from tests.compose import ROOT, composed, tiny

GROUPS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in ROOT.glob("conf/*/*.yaml")
    if path.parent.name != "hardware"  # models for scaling.budget: no group of Hydra's
)


@pytest.mark.parametrize("choice", GROUPS)
def test_every_group_option_composes(choice: str) -> None:
    extra = {
        "activations=hf": ["activations.model=m", "activations.text=t", "activations.layer=1"],
        "activations=store": ["activations.path=p"],
    }.get(choice, [])
    tiny(choice, *extra) if not choice.startswith("activations") else composed(
        choice,
        *extra,
        "autoencoder.n_latents=8",
        "autoencoder.k=1",
        "train.tokens=1000",
    )


def test_choices_become_typed_configs() -> None:
    assert isinstance(tiny().autoencoder, TopKConfig)
    assert isinstance(tiny().activations, PlantedConfig)
    embedded = composed(
        "autoencoder.n_latents=4096",
        "autoencoder.k=32",
        "train.tokens=1_000_000",
        "activations=embedded",
    )
    assert isinstance(embedded.activations, HarvestConfig)
    assert (embedded.activations.model, embedded.activations.layer) == ("embedded", 23)


@pytest.mark.parametrize(
    "override",
    [
        "autoencoder.width=3",
        "train.steps=3",
        "autoencoder.k=many",
        "train.tokens=1e6",
        "activations.layer=3",  # a key of another activations source
        "train.lr_rule=fast",
        "autoencoder=moe",
    ],
)
def test_unknown_keys_and_wrong_types_fail_at_compose_time(override: str) -> None:
    with pytest.raises(HydraException) as error:
        tiny(override)
    assert override.split("=")[0].split(".")[-1] in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "key", "remedy"),
    [
        (["autoencoder.k=65"], "autoencoder.k=65", "at most 64"),
        (["autoencoder.k=0"], "autoencoder.k=0", "1 or more"),
        (["autoencoder.n_latents=0"], "autoencoder.n_latents=0", "1 or more"),
        (["autoencoder.dead_after_tokens=0"], "autoencoder.dead_after_tokens=0", "1 or more"),
        (["autoencoder.aux_coef=-1"], "autoencoder.aux_coef=-1", "0 or more"),
        (["train.batch_tokens=20_000", "train.tokens=90_000"], "train.batch_tokens", "Lower it"),
        (["train.tokens=100"], "train.tokens=100", "Raise"),
        (["train.lr=-1"], "train.lr=-1", "above 0"),
        (["sweep.max_hours=0"], "sweep.max_hours=0", "above 0"),
        (["launcher.threads=100000"], "launcher.threads=100000", "1.."),
        (["train.warmup_tokens=99_999"], "train.warmup_tokens=99999", "Lower it"),
        (["train.decay_fraction=1.5"], "train.decay_fraction=1.5", "0..1"),
        (["train.ema_decay=1"], "train.ema_decay=1", "below 1"),
        (["mesh.dp=3"], "mesh.dp=3", "Change the one or the other"),
        (["checkpoint.keep=0"], "checkpoint.keep=0", "1 or more"),
        (["launcher.workers=0"], "launcher.workers=0", "1 or more"),
        (["sweep_name=a/b"], "sweep_name='a/b'", "plain name"),
    ],
)
def test_impossible_values_name_key_and_remedy(
    overrides: Sequence[str], key: str, remedy: str
) -> None:
    with pytest.raises(UserError) as error:
        validate(tiny(*overrides), n_train=16_384)
    message = str(error.value)
    assert key in message
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.lr=nan", "train.lr=nan"),
        ("train.lr=inf", "train.lr=inf"),
        ("sweep.max_hours=nan", "sweep.max_hours=nan"),
        ("activations.noise=nan", "activations.noise=nan"),
        ("autoencoder.dead_after_tokens=99999999999999999999", "autoencoder.dead_after_tokens"),
        ("train.seed=99999999999999999999", "train.seed"),
    ],
)
def test_numbers_that_are_none_are_named_first(override: str, key: str) -> None:
    with pytest.raises(UserError, match=key):
        check_numbers(tiny(override))
    check_numbers(tiny())


@pytest.mark.parametrize("key", ["runs_dir", "data_dir"])
def test_folders_that_cannot_be_written_are_named(key: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("/dev/null", tmp_path / "file" / "sub"):
        with pytest.raises(UserError, match=key):
            check_folders(tiny(f"{key}={place}"))
    check_folders(tiny(f"{key}={tmp_path}/new/deep"))


def test_keys_added_with_a_plus_are_refused_too() -> None:
    with pytest.raises(UserError, match="foo is no key"):
        tiny("+foo=1")
    with pytest.raises(UserError, match=r"autoencoder\.foo is no key"):
        tiny("+autoencoder.foo=1")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["autoencoder.n_latent=3"], "Did you mean autoencoder.n_latents"),
        (["activations.layer=3"], "another option of the group activations"),
        (["autoencoder.target_l0=9"], "of the group autoencoder (autoencoder=jumprelu)"),
        (["autoencoder=jumprelu", "autoencoder.bandwith=1"], "mean autoencoder.bandwidth"),
        (["train.tokens=1e6"], "could not be converted to Integer"),
        (
            ["autoencoder=moe"],
            "Available options in 'autoencoder': batch_topk gated jumprelu matryoshka multi_topk "
            "prolu relu topk. ",
        ),
        (["train.lr_rule=fast"], "expected one of [inverse_sqrt_n, step_limited, power]"),
    ],
)
def test_hydra_errors_become_one_helpful_paragraph(overrides: list[str], said: str) -> None:
    with pytest.raises(HydraException) as error:
        tiny(*overrides)
    message = explain(error.value)
    assert said in message
    assert "\n" not in message


def test_missing_values_are_named() -> None:
    with pytest.raises(UserError, match=r"autoencoder\.k"):
        composed("activations=planted", "autoencoder.n_latents=8", "train.tokens=1000")


def test_a_run_that_cannot_fit_is_refused_with_the_size_that_would() -> None:
    with pytest.raises(UserError, match=r"autoencoder\.n_latents=16777216.*Lower") as error:
        check_memory(tiny("autoencoder.n_latents=16777216"), 4096, available_bytes=24 * 2**30)
    fitting = int(str(error.value).split("n_latents to ")[1].split(" ")[0])
    check_memory(tiny(f"autoencoder.n_latents={fitting}"), 4096, available_bytes=24 * 2**30)
    with pytest.raises(UserError):
        check_memory(tiny(f"autoencoder.n_latents={fitting + 1}"), 4096, 24 * 2**30)


def test_a_batch_that_cannot_fit_is_named() -> None:
    config = tiny("train.batch_tokens=100_000_000", "train.tokens=100_000_000")
    with pytest.raises(UserError, match=r"Lower train\.batch_tokens=100000000"):
        check_memory(config, 4096, available_bytes=24 * 2**30)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("sweep_name", ("a", "b")),
        ("runs_dir", ("a", "b")),
        ("logger", ("jsonl", "wandb")),
        ("launcher.threads", (1, 2)),
        ("sweep.max_hours", (1, 2)),
        ("dry_run", ("true", "false")),
    ],
)
def test_keys_of_the_launch_must_not_vary(key: str, values: tuple[object, object]) -> None:
    points = [tiny(f"{key}={value}") for value in values]
    with pytest.raises(UserError, match=key.split(".")[0]):
        check_shared(points)
    check_shared(points[:1] * 2)


def test_where_keeps_the_wanted_points() -> None:
    points = [
        tiny(f"autoencoder.n_latents={n}", f"autoencoder.k={k}", "sweep.where='k <= n_latents/16'")
        for n in (64, 128)
        for k in (4, 8)
    ]
    kept = [(p.autoencoder.n_latents, p.autoencoder.k) for p in keep_wanted(points)]
    assert kept == [(64, 4), (128, 4), (128, 8)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("k < n_latents", True),
        ("1 < k < 3", False),
        ("not k == 4 or tokens >= 100", True),
        ("n_latents % 3 == 1 and -k < 0", True),
        ("k in (4, 8) and n_latents not in (4, 8)", True),
    ],
)
def test_where_expressions(expression: str, expected: bool) -> None:
    names = {"n_latents": 64, "k": 4, "tokens": 100}
    assert bool(evaluate(expression, names)) is expected


@pytest.mark.parametrize(
    "expression", ["k <", "width > 3", "__import__('os')", "k.real > 1", "k < '3'", "k / 0 > 1"]
)
def test_bad_where_expressions_are_refused(expression: str) -> None:
    with pytest.raises(UserError, match=r"sweep\.where"):
        evaluate(expression, {"k": 4})


def test_ladders_give_each_width_its_budgets() -> None:
    def tokens(n_latents: int, rung: int) -> int:
        return composed(
            "sweeps=demo",
            f"autoencoder.n_latents={n_latents}",
            "autoencoder.k=4",
            f"sweep.rung={rung}",
        ).train.tokens

    assert tokens(256, 0) < tokens(2048, 0) < tokens(2048, 2)
    with pytest.raises(UserError, match=r"no rung 0 for autoencoder\.n_latents=300"):
        tokens(300, 0)


def test_documented_keys_exist() -> None:
    point = tiny(
        "mesh.dp=1",
        "mesh.latent=1",
        "engine=torch",
        "kernels=reference",
        "logger=wandb",
        "logger.project=p",
        "logger.entity=e",
        "logger.tags=[a,b]",
        "checkpoint.every_tokens=1000",
        "checkpoint.keep=1",
        "runs_dir=x",
        "sweep_name=y",
        "dry_run=true",
        "debug.profile=true",
        "train.lr=null",
        "train.batch_tokens=128",
        "train.seed=3",
        "sweep.max_hours=1",
    )
    assert point.logger.tags == ["a", "b"]
    assert Path(point.runs_dir) == Path("x")
