"""Token budgets from D*(n), FLOPs and cells of a sweep's own; rates by one's own rule."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from scaling.activations.build import prepare
from scaling.autoencoder_config import name_of
from scaling.budget import flops_per_token_dense, flops_per_token_sparse
from scaling.choices import DeadTreatment
from scaling.command_line import compose_points
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.plan import RunPlan
from scaling.schedule import STEP_LIMITED
from scaling.sweep.grid import keep_wanted
from scaling.sweep.launch import launch
from scaling.sweep.planner import make_plan
from scaling.sweep.tokens import settle_tokens
from scaling.sweep.validate import validate
from tests.compose import ROOT, composed, composed_points, tiny

D_MODEL = 64
POINTS = (
    "sweep.points=[{n_latents:64,k:4,tokens:10240},{n_latents:128,k:8,tokens:20480,seed:3},"
    "{n_latents:64,k:4,lr_scale:2,batch_tokens:128}]"
)


def plan_of(point: RunConfig) -> RunPlan:
    (settled,) = settle_tokens([point], lambda _: D_MODEL)
    return make_plan(settled, prepare(settled.activations, Path("x"), progress=lambda _: None))


def d_star(n_latents: int, *overrides: str) -> int:
    law = ["sweep.d_star.D0=1e6", "sweep.d_star.s=0.6", "train.tokens=${d_star:}"]
    return tiny(f"autoencoder.n_latents={n_latents}", *law, *overrides).train.tokens


def test_tokens_to_convergence_grow_with_the_width_in_whole_batches() -> None:
    assert d_star(1024) == round(1e6 / 256) * 256
    assert d_star(4096) == round(1e6 * 4**0.6 / 256) * 256
    assert d_star(4096, "sweep.share=0.25") == round(0.25e6 * 4**0.6 / 256) * 256


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sweep.d_star.D0=null", r"sweep\.d_star\.D0=None gives no token budget"),
        ("sweep.d_star.D0=-1", r"sweep\.d_star\.D0=-1"),
        ("sweep.share=0", r"sweep\.share=0"),
        ("sweep.d_star.n0=nan", r"sweep\.d_star\.n0=nan"),
        ("sweep.d_star.s=nan", r"sweep\.d_star\.s=nan gives no token budget: set it to -4\.\.4"),
        ("sweep.d_star.s=-1e5", r"sweep\.d_star\.s=-100000\.0"),
        ("sweep.d_star.s=1e5", r"sweep\.d_star\.s=100000\.0"),
        ("sweep.d_star.D0=1e300", r"sweep\.d_star\.D0=1e\+300 at n_latents=1024 is"),
        ("train.batch_tokens=0", r"train\.batch_tokens=0 gives no token budget"),
        ("autoencoder.n_latents=-128", r"autoencoder\.n_latents=-128 gives no token budget"),
    ],
)
def test_a_law_without_a_value_is_named(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        d_star(1024, override)
    assert "raised while resolving" not in str(error.value)


D_STAR = ["sweep.d_star.D0=1e6", "train.tokens=${d_star:}"]


@pytest.mark.parametrize(
    "override", ["sweep.share=1e-9", "sweep.share=1e-3", "sweep.d_star.s=4", "sweep.d_star.D0=9"]
)
def test_a_share_of_less_than_one_batch_is_refused(override: str) -> None:
    """It must not train one batch in silence; where sweep.where leaves it out, it is nobody's."""
    point = tiny(*D_STAR, override)
    with pytest.raises(UserError, match=r"less than one batch .* raise sweep\.share=") as error:
        validate(point, n_train=None)
    assert f"sweep.d_star.D0={point.sweep.d_star.D0:g}" in str(error.value)
    validate(tiny(*D_STAR), n_train=None)
    dropped = tiny(*D_STAR, override, "sweep.where='tokens >= batch_tokens'")
    assert keep_wanted(settle_tokens([dropped], lambda _: D_MODEL)) == []


@pytest.mark.parametrize(
    ("convention", "per_token"),
    [
        ("dense", flops_per_token_dense(64, D_MODEL)),
        ("sparse", flops_per_token_sparse(64, D_MODEL, 4)),
    ],
)
def test_flops_pay_for_tokens_by_the_named_convention(convention: str, per_token: int) -> None:
    flops = 20_480 * per_token
    plan = plan_of(
        tiny("train.tokens=0", f"train.flops={flops}", f"train.flops_convention={convention}")
    )
    assert plan.tokens == plan.tokens_requested == 20_480
    assert plan.run_id == plan_of(tiny("train.tokens=20_480")).run_id
    assert plan.config["train"]["flops"] == flops  # as the user said it


FLOPS = ["train.tokens=0", "train.flops=1e9", "train.flops_convention=sparse"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.flops=1e9"], r"train\.tokens=10240 and train\.flops=1e\+09 both set"),
        (["train.tokens=0"], r"train\.tokens is not set"),
        (["train.tokens=0", "train.flops=-1"], r"train\.flops=-1\.0 is out of range"),
        (["train.tokens=0", "train.flops=1e6"], r"less than one batch"),
        (["train.tokens=0", "train.flops=1e300"], r"trains 2.03e\+295 tokens .* more than any run"),
        ([*FLOPS, "autoencoder.n_latents=0"], r"autoencoder\.n_latents=0 is out of range"),
        ([*FLOPS, "autoencoder.n_latents=-64"], r"autoencoder\.n_latents=-64 is out of range"),
        ([*FLOPS, "autoencoder.k=-9"], r"autoencoder\.k=-9 is out of range"),
    ],
)
def test_lengths_that_are_none_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        settle_tokens([tiny(*overrides)], lambda _: D_MODEL)


def test_widths_are_asked_for_only_where_flops_need_them() -> None:
    def never(_: RunConfig) -> int:
        raise AssertionError("asked")

    assert settle_tokens([tiny()], never) == [tiny()]


def test_a_cell_that_where_drops_may_buy_nothing(tmp_path: Path) -> None:
    flops = 10_240 * flops_per_token_dense(64, D_MODEL)
    keys = [f"train.flops={flops}", "train.tokens=0", "sweep.where='tokens >= 1000'"]
    points = [tiny(*keys, f"autoencoder.n_latents={n}") for n in (64, 65_536)]
    (kept,) = settle_tokens(points, lambda _: D_MODEL)
    assert (kept.autoencoder.n_latents, kept.train.tokens) == (64, 10_240)
    all_meant = [replace(p, sweep=replace(p.sweep, where=None)) for p in points]
    with pytest.raises(UserError, match=r"trains 10 tokens .*drop such cells by sweep\.where"):
        settle_tokens(all_meant, lambda _: D_MODEL)
    console = Console(file=io.StringIO(), width=200)
    folders = (f"runs_dir={tmp_path}", "sweep_name=iso", "dry_run=true")
    launched = [tiny(*keys, *folders, f"autoencoder.n_latents={n}") for n in (64, 65_536)]
    assert launch(launched, console) == 0
    assert "1 of 2 grid points left out by sweep.where" in console.file.getvalue()


def test_points_are_runs_of_their_own() -> None:
    points = composed_points("activations=planted", "train.tokens=5120", POINTS)
    cells = [
        (p.autoencoder.n_latents, p.autoencoder.k, p.train.tokens, p.train.seed) for p in points
    ]
    assert cells == [(64, 4, 10_240, 0), (128, 8, 20_480, 3), (64, 4, 5_120, 0)]
    assert [p.train.lr_scale for p in points] == [1, 1, 2]
    assert [p.train.batch_tokens for p in points] == [256, 256, 128]
    assert not any(p.sweep.points for p in points)
    same = composed("activations=planted", "autoencoder.n_latents=64", "autoencoder.k=4",
                    "train.tokens=10240")  # fmt: skip
    assert plan_of(points[0]).run_id == plan_of(same).run_id


def test_cells_may_be_of_several_architectures() -> None:
    """Each has its own defaults; what was set of the keys that both have stays."""
    topk, relu, gated = composed_points(
        "activations=planted",
        "train.tokens=10240",
        "autoencoder.dead_after_tokens=777",
        "sweep.points=[{n_latents:64,k:4},{n_latents:64,autoencoder:relu,penalty:0.1},"
        "{n_latents:64,autoencoder:gated,penalty:0.2}]",
    )
    names = [name_of(point.autoencoder) for point in (topk, relu, gated)]
    assert names == ["topk", "relu", "gated"]
    assert {point.autoencoder.dead_after_tokens for point in (topk, relu, gated)} == {777}
    assert (topk.autoencoder.decoder_norm, relu.autoencoder.decoder_norm) == (True, False)
    assert relu.autoencoder.dead_treatment is DeadTreatment.none
    same = composed("activations=planted", "autoencoder=gated", "autoencoder.n_latents=64",
                    "autoencoder.penalty=0.2", "autoencoder.dead_after_tokens=777",
                    "train.tokens=10240")  # fmt: skip
    assert gated == replace(same, sweep=gated.sweep)


def test_where_may_name_a_penalty_of_zero() -> None:
    points = [
        tiny("autoencoder=relu", f"autoencoder.penalty={p}", "sweep.where='penalty < 0.1'")
        for p in (0, 0.2)
    ]
    assert keep_wanted(points) == points[:1]


def test_points_take_budgets_that_follow_from_their_width() -> None:
    points = composed_points(
        "activations=planted",
        "sweep.points=[{n_latents:1024,k:4},{n_latents:4096,k:4}]",
        "sweep.d_star.D0=1e6",
        "train.tokens=${d_star:}",
    )
    assert [p.train.tokens for p in points] == [d_star(1024), d_star(4096)]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ("[{n_latents:64}]", "cell 1 has no k"),
        ("[{n_latents:64,k:4,autoencoder:moe}]", "cell 1 has autoencoder=moe, .* topk"),
        ("[{n_latents:64,k:4,autoencoder:relu}]", "cell 1 has k=4, .* autoencoder=relu has no k"),
        ("[{n_latents:64,k:4},{k:4}]", "cell 2 has no n_latents"),
        ("[{n_latents:64,k:4,width:3}]", "width"),
        ("[{n_latents:64,k:many}]", "many"),
        ("[{n_latents:64,k:4,tokens:0}]", "cell 1 has tokens=0. Set them to 1 or more"),
        ("[{n_latents:64,k:4},{n_latents:64,k:4,tokens:-5}]", "cell 2 has tokens=-5"),
        ("[{n_latents:64,k:4,seed:'${nope}'}]", "cell 1 has no usable seed: .*nope"),
    ],
)
def test_cells_that_are_none_are_refused(points: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        composed_points("activations=planted", "train.tokens=5120", f"sweep.points={points}")


@pytest.mark.parametrize(
    ("arguments", "said", "unsaid"),
    [
        (["-m", "sweep.points=[{n_latents:8,k:1,width:3}]"], "width is not a key of a cell", "-m"),
        (["-m", "sweeps=smoke", "sweep.points=[{k:1}]"], "cell 1 has no n_latents", "-m"),
        (["--multirun", "sweeps=smoke", "sweep.points=[{k:1}]"], "cell 1 has no n_latents", "-m"),
        (["sweeps=smoke", "sweep.points=[{k:1}]"], "launched with -m", "traceback"),
        (["sweep.points=[{n_latents:8,k:1,seed:'${nope}'}]"], "cell 1 has no usable seed", "-m"),
    ],
)
def test_a_command_with_such_cells_is_explained(
    arguments: list[str], said: str, unsaid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["launch.py", *arguments, "hydra.sweeper.params=null"])
    for name in ("HYDRA_FULL_ERROR", "SCALING_ROOT", "SCALING_HYDRA_DIR"):
        monkeypatch.setenv(name, "")  # the command sets them, for this process
    with pytest.raises(UserError, match=said) as error:
        compose_points(ROOT)
    assert unsaid not in str(error.value)


def test_a_rule_of_ones_own_is_read_from_its_keys() -> None:
    own = [
        "train.lr_rule=power",
        "train.lr_power={lr: 1.9e-3, n: -0.25, tokens: -0.4, batch: 0.45}",
    ]
    same = plan_of(tiny(*own))
    assert same.train.lr == STEP_LIMITED.at(64, 10_240, 256)
    assert same.run_id == plan_of(tiny("train.lr_rule=step_limited")).run_id
    other = plan_of(tiny("train.lr_rule=power", "train.lr_power.lr=1e-3", "train.lr_power.n=-0.5"))
    assert other.train.lr == pytest.approx(1e-3 * (64 / 1024) ** -0.5)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.lr_rule=power"], r"train\.lr_power\.lr is not set"),
        (["train.lr_power.lr=1e-3"], r"not read by train\.lr_rule=step_limited"),
        (["train.lr_rule=power", "train.lr_power.lr=0"], r"train\.lr_power\.lr=0"),
        (
            ["train.lr_rule=power", "train.lr_power.lr=1", "train.lr_power.n=400"],
            r"train\.lr_power\.n=400",
        ),
        (
            ["train.lr_rule=power", "train.lr_power.lr=5e-324", "train.lr_power.tokens=4"],
            r"train\.lr_rule=power with .*rate of 0 at",
        ),
        (["train.lr=1e18", "train.lr_scale=1e18"], r"train\.lr=1e\+18 with .*rate of 1e\+36"),
        ([*(STOP := ["train.stop.fall=0.01", "train.stop.after_tokens=2560"])], "decay_fraction"),
        ([*STOP, "train.decay_fraction=0", "train.ema_decay=0"], r"train\.ema_decay=0 keeps no"),
        ([*STOP, "train.decay_fraction=0", "train.stop.per_doubling=0"], "per_doubling=0"),
        ([*STOP, "train.decay_fraction=0", "train.stop.fall=1"], r"train\.stop\.fall=1"),
        (
            [*STOP, "train.decay_fraction=0", "train.stop.after_tokens=9999"],
            "leaves no doubling to judge",
        ),
        (  # 2 x 1025 tokens fit into 2050, but two doublings of whole batches do not
            [*STOP, "train.decay_fraction=0", "train.batch_tokens=1024", "train.tokens=2050",
             "train.stop.after_tokens=1025"],
            "first evaluation is after step 2 of 2",
        ),
        ([*STOP, "train.decay_fraction=0"], r"train\.lr_rule=step_limited has the exponent -0\.4"),
        (
            [*STOP, "train.decay_fraction=0", "train.lr_rule=power", "train.lr_power.lr=1e-3",
             "train.lr_power.tokens=0.1"],
            r"train\.lr_rule=power has the exponent 0\.1",
        ),
        (
            [*STOP, "train.decay_fraction=0", "train.lr=1e-3", "autoencoder=relu",
             "autoencoder.penalty_warmup=0.3"],
            r"penalty_warmup=0\.3 of .* ends after 3072 tokens.*after_tokens=3072 or more",
        ),
        (["train.stop.per_doubling=99"], r"train\.stop\.per_doubling=99 is not read without"),
        (["train.stop.after_tokens=-7"], r"train\.stop\.after_tokens=-7 is not read without"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate(tiny(*overrides), n_train=None)


def test_rules_at_their_limits_are_taken() -> None:
    stop = ["train.decay_fraction=0", "train.stop.fall=0.01", "train.lr=1e-3"]
    validate(tiny(*stop, "train.stop.after_tokens=5120"), n_train=None)
    validate(tiny(*stop, "train.batch_tokens=1024", "train.tokens=2050",
                  "train.stop.after_tokens=1024"), n_train=None)  # fmt: skip
    warm = ["autoencoder=relu", "autoencoder.penalty_warmup=0.3", "train.stop.after_tokens=3072"]
    validate(tiny(*stop, *warm), n_train=None)
    own = ["train.lr_rule=power", "train.lr_power={lr: 1e-3, n: -0.25}"]
    validate(tiny(*stop[:2], *own, "train.stop.after_tokens=2560"), n_train=None)


def test_a_stopping_rule_is_part_of_the_identity_only_where_it_is_on() -> None:
    constant = plan_of(tiny("train.decay_fraction=0"))
    off = plan_of(tiny("train.decay_fraction=0", "train.stop.after_tokens=512"))
    on = plan_of(tiny("train.decay_fraction=0", "train.stop.fall=0.01"))
    other = plan_of(tiny("train.decay_fraction=0", "train.stop.fall=0.02"))
    assert off.run_id == constant.run_id
    assert len({constant.run_id, on.run_id, other.run_id}) == 3
    assert RunPlan.from_json(on.to_json()) == on
