"""The CPU backend's selection: bounds that hold, rows that overflow, threads, code paths."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scaling.kernels import load_kernels
from scaling.kernels.cpu import build, library, select
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

    def narrow(*arguments: object) -> library.Slack:
        slack = honest(*arguments)  # type: ignore[arg-type]
        assert slack is not None
        return library.Slack(slack.token_B, slack.latent_N / 100, 0.0)

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


def test_minus_infinity_still_gives_k_different_latents() -> None:
    x_BD, w_enc_ND, b_enc_N = problem(n_latents=100)
    b_enc_N[3:] = -torch.inf
    for matmul in select.MATMULS:
        found = CpuKernels(matmul).topk(x_BD, w_enc_ND, b_enc_N, 8)
        assert all(len(set(row)) == 8 for row in found.indices_BK.tolist())
        assert all({0, 1, 2} <= set(row) for row in found.indices_BK.tolist())


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


def test_unknown_matmul_is_an_error() -> None:
    with pytest.raises(ValueError, match="matmul=fp8 is not one of"):
        load_kernels("cpu", "fp8")


def test_wrong_dtypes_do_not_reach_native_code() -> None:
    x_BD, w_enc_ND, b_enc_N = problem()
    with pytest.raises(ValueError, match=r"need dense torch.float32"):
        CpuKernels("float32").topk(x_BD.double(), w_enc_ND.double(), b_enc_N.double(), 4)


@pytest.mark.parametrize("rows", [1, 7])
def test_the_portable_path_selects_the_same(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processors without AVX-512 run other code; it is compiled and compared here."""
    x_BD, w_enc_ND, b_enc_N = problem(n_tokens=rows)
    expected = {m: CpuKernels(m).topk(x_BD, w_enc_ND, b_enc_N, 9) for m in select.MATMULS}
    portable = tmp_path / "portable.so"
    flags = ["-std=c++17", "-O2", "-DSAE_PORTABLE", "-fopenmp", "-fPIC", "-shared"]
    subprocess.run([build._compiler(), *flags, str(build.SOURCE), "-o", str(portable)], check=True)
    monkeypatch.setattr(library, "library_path", lambda: portable)
    library._library.cache_clear()
    try:
        for matmul, one in expected.items():
            found = CpuKernels(matmul).topk(x_BD, w_enc_ND, b_enc_N, 9)
            assert torch.equal(found.indices_BK, one.indices_BK)
            assert torch.allclose(found.values_BK, one.values_BK, rtol=1e-5)
    finally:
        library._library.cache_clear()


def test_no_compiler_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    with pytest.raises(build.NativeUnavailableError, match="install g\\+\\+"):
        build._compiler()


def test_a_compiler_that_fails_is_said_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "native.cpp"
    broken.write_text("this is no program")
    monkeypatch.setattr(build, "SOURCE", broken)
    with pytest.raises(build.NativeUnavailableError, match="expected unqualified-id"):
        build._compile(build._compiler(), build.FLAGS, tmp_path / "cache" / "native.so")
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(build.NativeUnavailableError, match="XDG_CACHE_HOME"):
        build._compile(build._compiler(), build.FLAGS, tmp_path / "file" / "native.so")
