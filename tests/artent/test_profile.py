import json
import subprocess
import sys
from math import inf, log

import artent
import numpy as np
import pytest
import torch
from artent import theory

import artent_ext


def lora(m=12, n=20, r=3, dtype=torch.float64, requires_grad=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    B, A = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((m, r), (r, n)))
    return B.requires_grad_(requires_grad), A.requires_grad_(requires_grad)


B, A = lora()


def test_a_known_profile():
    """Two equal singular values on matching digits: ln 2 where the digits are parted, zero where they are not."""
    W = torch.zeros(4, 4)
    W[0, 0] = W[3, 3] = 7.0  # |00,00⟩ + |11,11⟩: one bit shared by all four sites
    profile = artent.entanglement_profile(W)
    assert profile.entropy.tolist() == pytest.approx([log(2)] * 3)
    assert (profile.shape, profile.dims, profile.bonds, profile.cut) == ((4, 4), (2, 2, 2, 2), (1, 2, 3), 2)
    assert profile.schmidt_ranks == (2, 2, 2)
    assert profile.effective_rank == pytest.approx(2)
    assert profile.cut_probabilities.tolist() == pytest.approx([0.5, 0.5, 0, 0])
    assert [float(profile.mass_kept(k)) for k in (0, 1, 2, 9)] == pytest.approx([0, 0.5, 1, 1])
    assert profile.valley_depth == pytest.approx(0)
    assert (profile.rank, profile.alpha, profile.log_base, profile.method) == (None, 1.0, None, "exact")
    assert torch.equal(profile.lower, profile.entropy)
    assert torch.equal(profile.upper, profile.entropy)


def test_valley_slope_and_units():
    profile = artent.entanglement_profile(artent.LoRAUpdate(*lora(256, 256, 4)))
    bits = artent.entanglement_profile(artent.LoRAUpdate(*lora(256, 256, 4)), log_base=2)
    torch.testing.assert_close(bits.entropy, profile.entropy / log(2))
    assert profile.valley_depth == pytest.approx(float(profile.entropy.max() - profile.entropy[profile.cut - 1]))
    assert profile.valley_depth == pytest.approx(1.6, abs=0.15)  # random rank-4 factors at 256², docs/math.md §1
    assert profile.valley_fraction == pytest.approx(float(profile.valley_depth / profile.max_entropy))
    assert profile.effective_rank == pytest.approx(float(profile.cut_entropy.exp()))
    assert 3 < profile.effective_rank < 4
    for scalar in ("slope", "effective_rank", "valley_fraction"):
        assert getattr(bits, scalar) == pytest.approx(float(getattr(profile, scalar)))
    assert 0.9 < profile.slope < 1


def test_the_slope_of_a_volume_law_is_one():
    identity = artent.entanglement_profile(torch.eye(64))  # maximally entangled rows and columns
    assert identity.slope == pytest.approx(1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (1, 12), (12, 1)])
def test_single_rows_and_columns(shape):
    profile = artent.entanglement_profile(torch.ones(shape))
    assert profile.cut_entropy == 0
    assert profile.effective_rank == 1
    assert profile.cut_probabilities.tolist() == [1.0]
    assert profile.valley_depth == pytest.approx(0, abs=1e-12)
    assert profile.valley_fraction == pytest.approx(0, abs=1e-12)
    assert len(profile.entropy) == len(profile.bonds) == len(profile.schmidt_ranks) == len(profile.log_dims)
    again = artent.EntanglementProfile.from_dict(profile.to_dict())
    assert again.entropy.shape == profile.entropy.shape


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, inf])
def test_what_is_written_is_read(alpha):
    profile = artent.entanglement_profile(artent.LoRAUpdate(*lora(requires_grad=True)), alpha=alpha, log_base=2)
    record = json.loads(json.dumps({"kind": "profile", **profile.to_dict()}, allow_nan=False))
    again = artent.EntanglementProfile.from_dict(record)
    for name in ("entropy", "lower", "upper", "cut_probabilities", "slope", "valley_depth", "log_dims"):
        assert torch.equal(getattr(again, name), getattr(profile, name).detach())
    for name in ("schmidt_ranks", "sites", "dims", "cut", "bonds", "shape", "rank", "alpha", "log_base", "method"):
        assert getattr(again, name) == getattr(profile, name)
    with pytest.raises(ValueError, match="entropy missing"):
        artent.EntanglementProfile.from_dict({k: v for k, v in record.items() if k != "entropy"})


def test_a_list_is_its_members():
    B, A = lora()
    updates = [B @ A, artent.LoRAUpdate(B, A, 0.1), torch.randn(9, 5), artent.LoRAUpdate(2 * B, A), (B @ A).float()]
    profiles = artent.entanglement_profile(updates)
    assert [p.rank for p in profiles] == [None, 3, None, 3, None]
    for update, profile in zip(updates, profiles):
        torch.testing.assert_close(profile.entropy, artent.entanglement_profile(update).entropy, rtol=0, atol=1e-12)
    torch.testing.assert_close(profiles[0].entropy, profiles[1].entropy)
    assert artent.entanglement_profile([]) == []


@pytest.mark.parametrize("seed", range(8))
def test_bounds_hold(seed):
    for m, n, r in ((32, 32, 4), (12, 35, 40), (64, 9, 2)):
        update = artent.LoRAUpdate(*lora(m, n, r, seed=seed))
        profile = artent.entanglement_profile(update)
        assert (profile.entropy <= torch.tensor(theory.rank_bound(profile.dims, profile.cut, r)) + 1e-9).all()
        profile = artent.entanglement_profile(update.dense())
        assert (profile.entropy <= torch.tensor(theory.rank_bound(profile.dims, profile.cut)) + 1e-9).all()


DENSE = {
    "square": torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    "rectangle": torch.randn(3, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    "identity": torch.eye(6, dtype=torch.float64),
    "degenerate": torch.diag(torch.tensor([2.0, 2, 1, 1], dtype=torch.float64)),
    "rank one": torch.outer(torch.arange(1.0, 5), torch.arange(2.0, 8)).double(),
}


SMOOTH = [(case, alpha) for case in DENSE for alpha in (0.7, 1.0, 2.0)]
SMOOTH.remove(("rank one", 0.7))  # S_α of α < 1 has no derivative where a probability vanishes


@pytest.mark.parametrize(("case", "alpha"), SMOOTH)
def test_gradients_of_a_dense_update(case, alpha):
    W = DENSE[case].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda W: artent.entanglement_profile(W, alpha=alpha).entropy, W)


@pytest.mark.parametrize("shape", [(8, 6, 2), (6, 8, 1), (4, 6, 7)])
def test_gradients_of_factors(shape):
    def profile(B, A):
        p = artent.entanglement_profile(artent.LoRAUpdate(B, A, 0.5))
        return p.entropy, p.valley_depth, p.cut_probabilities[:1]

    assert torch.autograd.gradcheck(profile, lora(*shape, requires_grad=True))


def test_gradients_of_dependent_factors_and_of_cores():
    B, A = lora(6, 8, 2, requires_grad=True)
    entropy = artent.entanglement_profile(artent.LoRAUpdate(B[:, :1].expand(6, 2), A)).entropy
    assert all(g.isfinite().all() for g in torch.autograd.grad(entropy.sum(), (B, A)))
    cores = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3), (3, 4, 2))]
    assert torch.autograd.gradcheck(
        lambda B, *cores: artent.entanglement_profile(artent.MPSUpdate(B, list(cores))).entropy, (B, *cores)
    )


def test_second_derivatives():
    W = DENSE["rectangle"].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda W: artent.entanglement_profile(W).cut_entropy, W)
    B, A = lora(requires_grad=True)
    entropy = artent.entanglement_profile(artent.LoRAUpdate(B, A)).cut_entropy
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(entropy, B, create_graph=True)


def test_the_gradient_of_factors_is_that_of_their_product():
    B, A = lora(requires_grad=True)
    factored = artent.entanglement_profile(artent.LoRAUpdate(B, A)).entropy.sum()
    dense = artent.entanglement_profile(B @ A).entropy.sum()
    for a, b in zip(torch.autograd.grad(factored, (B, A)), torch.autograd.grad(dense, (B, A))):
        torch.testing.assert_close(a, b)


def test_a_profile_can_be_a_loss_term():
    W = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimiser = torch.optim.SGD([W], lr=2.0)
    before = float(artent.entanglement_profile(W.detach()).cut_entropy)
    for _ in range(30):
        optimiser.zero_grad()
        (0.0 * W.sum() + artent.entanglement_profile(W).cut_entropy).backward()
        optimiser.step()
    assert W.grad.dtype == torch.float32
    assert float(artent.entanglement_profile(W.detach()).cut_entropy) < before - 0.5


def apart(B=B, A=A):
    """B uses only the first rank, A only the others."""
    return artent.LoRAUpdate(B * torch.tensor([1.0, 0, 0]), A * torch.tensor([[0.0], [1], [1]]))


BAD = {
    "zero": (lambda: artent.entanglement_profile(torch.zeros(3, 3)), ValueError, "update: is zero.*did not change"),
    "zero B": (lambda: artent.entanglement_profile(artent.LoRAUpdate(0 * B, A)), ValueError, r"update\.B.*at a LoRA's"),
    "B A = 0": (lambda: artent.entanglement_profile(apart()), ValueError, "neither B nor A is zero but B @ A is"),
    "NaN": (lambda: artent.entanglement_profile(torch.tensor([[1.0, float("nan")]])), ValueError, "NaN or Inf"),
    "Inf": (lambda: artent.entanglement_profile([B, B * inf]), ValueError, r"update\[1\]: holds NaN or Inf"),
    "NaN in A": (lambda: artent.entanglement_profile(artent.LoRAUpdate(B, A * inf)), ValueError, r"update\.A"),
    "integers": (lambda: artent.entanglement_profile(torch.ones(2, 2).int()), TypeError, "update: .*int32"),
    "empty": (lambda: artent.entanglement_profile(torch.ones(0, 2)), ValueError, "update: has an empty dimension"),
    "a batch": (lambda: artent.entanglement_profile(torch.ones(2, 2, 2)), ValueError, "list of matrices"),
    "an operator": (lambda: artent.entanglement_profile([artent_ext.Operator.from_factors(B, A)]), TypeError,
                    r"update\[0\]: got an artent_ext.Operator.*LoRAUpdate\(B, A\).*dense matrix"),
    "a module": (lambda: artent.entanglement_profile(torch.nn.Linear(2, 2)), TypeError, "got Linear"),
    "sites": (lambda: artent.entanglement_profile(B, sites=((5,), (3,))), ValueError, "sites: row sites"),
    "method": (lambda: artent.entanglement_profile(B, method="svd"), ValueError, "'randomized', 'hybrid', got 'svd'"),
    "alpha": (lambda: artent.entanglement_profile(B, alpha=-1), ValueError, "alpha"),
    "log_base": (lambda: artent.entanglement_profile(B, log_base=0), ValueError, "log_base"),
    "k": (lambda: artent.entanglement_profile(B).mass_kept(-1), ValueError, "k: expected a rank"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()


def test_autocast_does_not_reach_a_profile():
    """A profile as a loss term stands under autocast; its products stay as they are."""
    generator = torch.Generator().manual_seed(0)
    cores = [torch.randn(4, 6, generator=generator), torch.randn(6, 8, 3, generator=generator)]
    updates = [
        artent.MPSUpdate(torch.randn(24, 3, generator=generator), cores),
        torch.randn(24, 32, generator=generator).half(),
        artent.LoRAUpdate(
            torch.randn(24, 3, generator=generator).half(), torch.randn(3, 32, generator=generator).half()
        ),
    ]
    plain = artent.entanglement_profile(updates)
    with torch.autocast("cpu", torch.bfloat16):
        inside = artent.entanglement_profile(updates)
    for a, b in zip(plain, inside, strict=True):
        assert torch.equal(a.entropy, b.entropy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_cores_are_taken_as_exact(dtype):
    generator = torch.Generator().manual_seed(0)
    B = torch.randn(24, 3, generator=generator).to(dtype)
    cores = [torch.randn(4, 6, generator=generator).to(dtype), torch.randn(6, 8, 3, generator=generator).to(dtype)]
    A = torch.einsum("ax,xbr->rab", *(core.double() for core in cores)).flatten(1)
    truth = artent.entanglement_profile(B.double() @ A)
    torch.testing.assert_close(artent.entanglement_profile(artent.MPSUpdate(B, cores)).entropy, truth.entropy)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cores_of_any_scale(scale):
    generator = torch.Generator().manual_seed(0)
    B, cores = torch.randn(24, 3, generator=generator), [torch.randn(4, 6), torch.randn(6, 8, 3)]
    plain = artent.entanglement_profile(artent.MPSUpdate(B, cores))
    scaled = artent.entanglement_profile(artent.MPSUpdate(B * scale, [core * scale for core in cores]))
    torch.testing.assert_close(scaled.entropy, plain.entropy, rtol=0, atol=1e-5)


_PRECISION = """
import torch, artent
W = torch.randn(600, 600)
before = artent.entanglement_profile(W).entropy
exec({setting!r})
torch.testing.assert_close(artent.entanglement_profile(W).entropy, before, rtol=0, atol=1e-5)
"""


@pytest.mark.parametrize(
    "setting",
    [
        "torch.backends.fp32_precision = 'tf32'",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.set_float32_matmul_precision('medium')",
    ],
)
def test_either_way_to_lower_float32_precision_is_understood(setting):
    subprocess.run([sys.executable, "-c", _PRECISION.format(setting=setting)], check=True)


def test_a_numpy_log_base_survives_json():
    profile = artent.entanglement_profile(torch.eye(4), log_base=np.float32(2))
    again = artent.EntanglementProfile.from_dict(json.loads(json.dumps(profile.to_dict())))
    assert again.log_base == 2.0
    assert float(again.mass_kept(np.int64(2))) == pytest.approx(0.5)
