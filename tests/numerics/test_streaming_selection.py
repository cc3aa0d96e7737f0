"""The CPU backend's selection: bounds that hold, rows that overflow, threads, code paths."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scaling.kernels import load_kernels
from scaling.kernels.cpu import build, candidates, passes, select
from scaling.kernels.cpu.candidates import Slack
from scaling.kernels.cpu.kernels import CpuKernels
from scaling.kernels.interface import Active


def problem(
    n_tokens: int = 50, d_model: int = 96, n_latents: int = 1500, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Centered tokens, encoder rows of very different norms, and a bias."""
    generator = torch.Generator().manual_seed(seed)
    x_BD = torch.randn(n_tokens, d_model, generator=generator)
    w_enc_ND = torch.randn(n_latents, d_model, generator=generator)
    w_enc_ND *= torch.rand(n_latents, 1, generator=generator).exp()
    return x_BD, w_enc_ND, 0.1 * torch.randn(n_latents, generator=generator)


def oracle(x_BD: Tensor, w_enc_ND: Tensor, b_enc_N: Tensor, k: int) -> Active:
    """In float64: what no rounding decides."""
    zero_D = torch.zeros(x_BD.shape[1], dtype=torch.float64)
    return load_kernels("reference").encode_topk(
        x_BD.double(), w_enc_ND.double(), b_enc_N.double(), k, b_pre_D=zero_D
    )


@pytest.mark.parametrize("seed", range(5))
def test_every_bf16_score_lies_within_its_bound(seed: int) -> None:
    x_BD, w_enc_ND, _ = problem(seed=seed)
    selector = select.Selector("certified")
    tokens, latents = select.make_shadow(x_BD), select.make_shadow(w_enc_ND)
    slack = selector._slack(tokens, latents, x_BD.shape[1])
    assert slack is not None
    scores = tokens.rows_ND @ latents.rows_ND.T
    error = (scores.double() - x_BD.double() @ w_enc_ND.double().T).abs()
    bound = slack.token_B[:, None] * slack.latent_N + slack.relative * scores.float().abs()
    assert bool((error <= bound).all())
    assert bool((error > 0.05 * bound).any())  # not so wide that anything would pass


def midpoints(seed: int) -> tuple[Tensor, Tensor]:
    """Scalars just beside the middle between two bf16 numbers: rounding takes all it can."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        low = (1 + torch.rand(200, 1, generator=generator)).bfloat16().float()
        side = torch.where(torch.rand(200, 1, generator=generator) < 0.5, -1.0, 1.0)
        return low + 2.0**-8 * (1 + side * 2.0**-10)

    return draw(), draw()


BROKEN_BOUNDS = {
    "no token term": lambda slack, lost: Slack(
        slack.token_B, slack.latent_N - lost, slack.relative
    ),
    "no output rounding": lambda slack, _: Slack(slack.token_B, slack.latent_N, 0.0),
    "half": lambda slack, _: Slack(slack.token_B / 2, slack.latent_N, slack.relative / 2),
}


def worst_share_of_bound(x_B1: Tensor, w_N1: Tensor, broken: str | None = None) -> float:
    tokens, latents = select.make_shadow(x_B1), select.make_shadow(w_N1)
    slack = select.Selector("certified")._slack(tokens, latents, 1)
    assert slack is not None
    if broken:
        lost = (tokens.error_N / tokens.norm_N).max() * latents.norm_N
        slack = BROKEN_BOUNDS[broken](slack, lost)
    scores = tokens.rows_ND @ latents.rows_ND.T
    error = (scores.double() - x_B1.double() @ w_N1.double().T).abs()
    bound = slack.token_B[:, None] * slack.latent_N + slack.relative * scores.float().abs()
    return float((error / bound).max())


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_holds_where_rounding_is_worst_and_no_term_is_idle(seed: int) -> None:
    x_B1, w_N1 = midpoints(seed)
    assert worst_share_of_bound(x_B1, w_N1) <= 1
    for broken in BROKEN_BOUNDS:
        assert worst_share_of_bound(x_B1, w_N1, broken) > 1, broken


def test_shadow_norms_are_those_of_rows_and_roundings() -> None:
    _, w_enc_ND, _ = problem()
    made = select.make_shadow(w_enc_ND)
    assert torch.equal(made.rows_ND, w_enc_ND.bfloat16())
    assert torch.allclose(made.norm_N, w_enc_ND.norm(dim=1))
    lost = (w_enc_ND - w_enc_ND.bfloat16().float()).norm(dim=1)
    assert torch.allclose(made.error_N, lost)


def near_ties(n_latents: int = 1500) -> tuple[Tensor, Tensor, Tensor]:
    """Latents in pairs that differ by less than bf16 can tell, but float32 can."""
    x_BD, w_enc_ND, b_enc_N = problem(n_latents=n_latents)
    w_enc_ND[1::2] = w_enc_ND[::2] * (1 + 2.0**-12)
    b_enc_N[1::2] = b_enc_N[::2]
    return x_BD, w_enc_ND, b_enc_N


def test_certified_tells_apart_what_bf16_cannot() -> None:
    x_BD, w_enc_ND, b_enc_N = near_ties()
    expected = oracle(x_BD, w_enc_ND, b_enc_N, 15)
    found = CpuKernels("certified").topk(x_BD, w_enc_ND, b_enc_N, 15)
    assert torch.equal(found.indices_BK, expected.indices_BK)
    loose = CpuKernels("bf16").topk(x_BD, w_enc_ND, b_enc_N, 15)
    assert not torch.equal(loose.indices_BK, expected.indices_BK)


def test_without_its_bound_the_filter_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The equality above can fail: a bound of a hundredth lets wrong latents win."""
    x_BD, w_enc_ND, b_enc_N = near_ties()
    honest = select.Selector._slack

    def narrow(*arguments: object) -> Slack:
        slack = honest(*arguments)  # type: ignore[arg-type]
        assert slack is not None
        return Slack(slack.token_B, slack.latent_N / 100, 0.0)

    monkeypatch.setattr(select.Selector, "_slack", narrow)
    found = CpuKernels("certified").topk(x_BD, w_enc_ND, b_enc_N, 15)
    assert not torch.equal(found.indices_BK, oracle(x_BD, w_enc_ND, b_enc_N, 15).indices_BK)


def test_bf16_values_are_float32() -> None:
    """Whatever bf16 selected, its values are those of float32."""
    x_BD, w_enc_ND, b_enc_N = problem()
    found = CpuKernels("bf16").topk(x_BD, w_enc_ND, b_enc_N, 15)
    pre_BN = x_BD @ w_enc_ND.T + b_enc_N
    assert torch.allclose(found.values_BK, pre_BN.gather(1, found.indices_BK), rtol=1e-5)
    assert bool((found.values_BK.diff(dim=1) <= 0).all())


def test_tokens_with_too_many_candidates_are_redone_exactly() -> None:
    """Half of the tokens meet 3,000 latents too alike for bf16, the others none."""
    generator = torch.Generator().manual_seed(0)
    x_BD = torch.zeros(20, 64)
    x_BD[::2, :32] = torch.randn(10, 32, generator=generator)
    x_BD[1::2, 32:] = torch.randn(10, 32, generator=generator)
    w_enc_ND = torch.randn(6000, 64, generator=generator)
    w_enc_ND[:, :32] = w_enc_ND[0, :32] + 1e-4 * torch.randn(6000, 32, generator=generator)
    kernels = CpuKernels("certified")
    found = kernels.topk(x_BD, w_enc_ND, torch.zeros(6000), 8)
    expected = oracle(x_BD, w_enc_ND, torch.zeros(6000), 8)
    assert kernels.selector.redone_tokens == 10
    # Differences of 1e-4 in float32 leave 1e-3 of their digits: compared by value, not by id.
    assert torch.allclose(found.values_BK.double(), expected.values_BK, rtol=1e-5)
    assert torch.equal(found.indices_BK[1::2], expected.indices_BK[1::2])


@pytest.mark.parametrize("matmul", select.MATMULS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e20])
def test_beyond_the_bounds_arithmetic_float32_decides(matmul: str, bad: float) -> None:
    """A weight that is not finite shows in the result, as it does in the reference."""
    x_BD, w_enc_ND, b_enc_N = problem(n_latents=200)
    w_enc_ND[7, 3] = bad
    found = CpuKernels(matmul).topk(x_BD, w_enc_ND, b_enc_N, 4)
    expected = CpuKernels("float32").topk(x_BD, w_enc_ND, b_enc_N, 4)
    assert torch.equal(found.indices_BK, expected.indices_BK)
    assert found.values_BK.isnan().any() == expected.values_BK.isnan().any() == (bad != bad)
    assert bool((found.indices_BK == 7).any())


@pytest.mark.parametrize("n_closed", [1, 7, 12, 97])
@pytest.mark.parametrize("n_latents", [15, 100, 1100])
def test_latents_closed_by_their_bias_come_last(n_latents: int, n_closed: int) -> None:
    """b_enc of minus infinity: such latents are taken only where there are no others."""
    x_BD, w_enc_ND, b_enc_N = problem(n_latents=n_latents)
    b_enc_N[: min(n_closed, n_latents - 1)] = -torch.inf
    expected = load_kernels("reference").encode_topk(
        x_BD, w_enc_ND, b_enc_N, 8, b_pre_D=torch.zeros(x_BD.shape[1])
    )
    for matmul in ("float32", "onednn", "certified"):
        found = CpuKernels(matmul).topk(x_BD, w_enc_ND, b_enc_N, 8)
        assert torch.equal(found.indices_BK, expected.indices_BK), matmul


def test_large_biases_are_inside_the_bound() -> None:
    """At d = 1 no order of summation can explain a difference; a bias swamps the product."""
    generator = torch.Generator().manual_seed(1)
    x_B1, w_N1 = torch.randn(300, 1, generator=generator), torch.randn(900, 1, generator=generator)
    for bias in (1e5, 1e6, 1e7):
        b_enc_N = torch.full((900,), bias)
        expected = CpuKernels("float32").topk(x_B1, w_N1, b_enc_N, 8)
        found = CpuKernels("certified").topk(x_B1, w_N1, b_enc_N, 8)
        assert torch.equal(found.indices_BK, expected.indices_BK)


def test_buffers_do_not_grow_with_every_new_size() -> None:
    kernels = CpuKernels("certified")
    for n_latents in range(300, 340):
        x_BD, w_enc_ND, b_enc_N = problem(n_tokens=340 - n_latents, n_latents=n_latents)
        kernels.topk(x_BD, w_enc_ND, b_enc_N, 9)
    assert len(kernels.selector._tiles) == 1  # one for each dtype


def test_equal_rows_tie_whatever_the_number_of_latents() -> None:
    """A last tile of one column would be summed in another order than the others."""
    x_BD = problem(n_tokens=20, d_model=100)[0]
    w_enc_ND = problem(d_model=100)[1][:1].expand(1025, 100).contiguous()
    for matmul in select.MATMULS:
        found = CpuKernels(matmul).topk(x_BD, w_enc_ND, torch.zeros(1025), 17)
        assert found.indices_BK.tolist() == [list(range(17))] * 20


@pytest.mark.parametrize("matmul", select.MATMULS)
def test_no_tokens_and_impossible_k(matmul: str) -> None:
    x_BD, w_enc_ND, b_enc_N = problem(n_latents=20)
    assert CpuKernels(matmul).topk(x_BD[:0], w_enc_ND, b_enc_N, 4).values_BK.shape == (0, 4)
    for k in (0, 21):
        with pytest.raises(ValueError, match=f"k={k} must lie in 1..20"):
            CpuKernels(matmul).topk(x_BD, w_enc_ND, b_enc_N, k)


@pytest.mark.parametrize("matmul", select.MATMULS)
def test_threads_do_not_change_the_result(matmul: str) -> None:
    """Of what is ours; a matmul library may sum in another order with other threads."""
    x_BD, w_enc_ND, b_enc_N = problem()
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(CpuKernels(matmul).topk(x_BD, w_enc_ND, b_enc_N, 9))
    torch.set_num_threads(before)
    assert all(torch.equal(other.indices_BK, found[0].indices_BK) for other in found)
    if matmul in ("certified", "bf16"):  # their values come from our own sums
        assert all(torch.equal(other.values_BK, found[0].values_BK) for other in found)


def test_unknown_matmul_is_an_error() -> None:
    with pytest.raises(ValueError, match="matmul=fp8 is not one of"):
        load_kernels("cpu", "fp8")


def test_wrong_dtypes_do_not_reach_native_code() -> None:
    x_BD, w_enc_ND, b_enc_N = problem()
    with pytest.raises(ValueError, match=r"need dense torch.float32"):
        CpuKernels("float32").topk(x_BD.double(), w_enc_ND.double(), b_enc_N.double(), 4)


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """What processors without AVX-512 run."""
    path = tmp_path_factory.mktemp("native") / "portable.so"
    flags = ["-std=c++17", "-O2", "-DSAE_PORTABLE", "-fopenmp", "-fPIC", "-shared"]
    command = [*build._compiler(), *flags, str(build.SOURCE), "-o", str(path)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(path))


@contextmanager
def running_on(library: ctypes.CDLL) -> Iterator[None]:
    library.sae_finish_rescored.restype = ctypes.c_int64
    with pytest.MonkeyPatch.context() as patch:
        for module in (candidates, passes):
            patch.setattr(module, "functions", lambda: library)
        yield


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("n_closed", [0, 5])
def test_the_portable_path_selects_the_same(
    rows: int, n_closed: int, portable: ctypes.CDLL
) -> None:
    x_BD, w_enc_ND, b_enc_N = problem(n_tokens=rows)
    b_enc_N[:n_closed] = -torch.inf
    for matmul in select.MATMULS:
        expected = CpuKernels(matmul).topk(x_BD, w_enc_ND, b_enc_N, 9)
        with running_on(portable):
            found = CpuKernels(matmul).topk(x_BD, w_enc_ND, b_enc_N, 9)
        assert torch.equal(found.indices_BK, expected.indices_BK)
        assert torch.allclose(found.values_BK, expected.values_BK, rtol=1e-5)


def test_the_portable_path_passes_the_same(portable: ctypes.CDLL) -> None:
    x_BD, w_dec_ND, b_enc_N = problem()
    active = CpuKernels("float32").select(x_BD, w_dec_ND, b_enc_N, 9, None)
    pre_BN = x_BD @ w_dec_ND.T

    def all_passes() -> tuple[Tensor, ...]:
        code_BN = pre_BN.clone()
        passes.keep_topk_(code_BN, 40)
        starts, pairs = passes.group_pairs(active.indices_BK, active.values_BK, 1500)
        kept = pairs[: int(starts[-1])]
        return (*passes.token_pass(x_BD, *active, w_dec_ND, -0.3), code_BN, starts, kept)

    expected = all_passes()
    with running_on(portable):
        found = all_passes()
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_no_compiler_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    with pytest.raises(build.NativeUnavailableError, match=r"install g\+\+"):
        build._compiler()


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and nothing remembered of other builds, before and after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build._library_or_problem.cache_clear()
    yield tmp_path
    build._library_or_problem.cache_clear()


@pytest.mark.parametrize(
    ("compiler", "words"),
    [
        ("gcc", "cannot be loaded"),  # links C++ code without its library
        ("/bin/true", "no output"),
        ("/bin/false", "exit status 1"),
        ("no-such-compiler", "no-such-compiler"),
        ("'unbalanced", "is no command"),
        ("SCRIPT", "cannot be run"),
    ],
)
def test_a_compiler_that_is_none_is_said(
    compiler: str, words: str, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = fresh_cache / "no-program"
    script.write_bytes(b"\x00\x01")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script) if compiler == "SCRIPT" else compiler)
    with pytest.raises(build.NativeUnavailableError, match=words):
        build.native_library()
    assert not list(fresh_cache.glob("sae-scaling/*"))


def test_a_compiler_may_have_arguments(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ -g0")
    assert "native-" in build.native_name()
    assert len(list(fresh_cache.glob("sae-scaling/*.so"))) == 1


def test_a_compiler_that_fails_is_said_with_its_words(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = fresh_cache / "native.cpp"
    broken.write_text("this is no program")
    monkeypatch.setattr(build, "SOURCE", broken)
    with pytest.raises(build.NativeUnavailableError, match="expected unqualified-id"):
        build.native_library()
    assert not list(fresh_cache.glob("sae-scaling/*"))


def test_a_cache_that_cannot_be_written_is_said(fresh_cache: Path) -> None:
    (fresh_cache / "sae-scaling").write_text("")
    with pytest.raises(build.NativeUnavailableError, match="XDG_CACHE_HOME"):
        build.native_library()


def test_a_damaged_library_is_built_again(fresh_cache: Path) -> None:
    """One that is cut short may load, and end the process when it is used."""
    path = build.compiled_path()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert build.compiled_path() == path
    assert len(path.read_bytes()) > len(whole) // 2
    assert build.native_library() is not None


def test_a_blank_compiler_is_none_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", " ")
    assert "+" in build._compiler()[0]
