"""One LoRA update as cores and back: errors against dense float64 and the best there is."""

import math

import artent
import pytest
import torch
from artent import LoRAUpdate, MPSUpdate
from artent.adapters.mps.layer import Factor
from artent.mps import balanced_sites, contract, largest_bonds
from artent.tt import tt_svd

M, N, R = 30, 48, 5
EPS = {torch.float64: 1e-14, torch.float32: 1e-6}


def update(dtype=torch.float64, seed=0, decay=1.0):
    """A LoRA whose factors have columns and rows of very different sizes, as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    B, A = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((M, R), (R, N)))
    return LoRAUpdate((B * decay ** torch.arange(R)).to(dtype), A.to(dtype), 2.0)


def product(update):
    B, A = update.factors(torch.float64)
    return B @ A


def unfolding(delta, factor, sites, k, carrier):
    """ΔW (m, n) at bond k of A's or B's chain: the sites of the free end on one side, all the rest on the other."""
    if factor == "B":
        delta = delta.mT
    left = math.prod(sites[:k])
    split = delta.reshape(len(delta), left, -1)
    return split.flatten(0, 1) if carrier == "first" else split.transpose(0, 1).flatten(1)


CHAINS = [(K, carrier, t) for K in (2, 3, 4) for carrier in ("first", "last") for t in ("A", "B", "both")]


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize(("K", "carrier", "tensorize"), CHAINS)
def test_full_bonds_give_the_factors_back_and_errors_are_those_of_the_dense_product(K, carrier, tensorize, dtype):
    given, chain = update(dtype), {"sites": K, "carrier": carrier, "tensorize": tensorize}
    exact, error = artent.from_lora(given, **chain)
    assert isinstance(exact, MPSUpdate)
    assert exact.scaling == given.scaling
    assert error < EPS[dtype]
    delta = product(given)
    for name, before, after in zip("BA", given.factors(torch.float64), exact.factors(torch.float64)):
        assert (after - before).norm() < EPS[dtype] * before.norm(), name
    for name, shape in zip("BA", exact.chains):
        if tensorize in (name, "both"):
            assert (shape.sites, shape.carrier) == (balanced_sites(shape.dimension, K), carrier)
            assert shape.bonds == largest_bonds(R, shape.sites, carrier)
        else:
            assert getattr(exact, name) is getattr(given, name)
    for options in ({"chi": 3}, {"tol": 0.3}, {"tol": 0.05}, {"tol": 0.3, "chi": tuple(range(4, K + 3))}):
        short, error = artent.from_lora(given, **chain, **options)
        assert {factor.dtype for factor in short.factors()} == {dtype}
        expected = ((product(short) - delta).norm() / delta.norm()).item()
        assert error == pytest.approx(expected, rel=1e-6, abs=1e-15)
        if "chi" in options:
            caps = options["chi"] if isinstance(options["chi"], tuple) else (3,) * (K - 1)
            assert all(bond <= cap for shape in short.chains for bond, cap in zip(shape.bonds, caps))
        else:
            assert error <= options["tol"] * (1 + 1e-5)  # rounding to float32 comes after the choice


@pytest.mark.parametrize("carrier", ["first", "last"])
@pytest.mark.parametrize("factor", ["A", "B"])
@pytest.mark.parametrize("decay", [1.0, 0.1, 1e-3])
def test_two_sites_are_truncated_as_well_as_any_can_be(factor, carrier, decay):
    given = update(decay=decay)
    delta = product(given)
    sites = balanced_sites(N if factor == "A" else M)
    sigma = torch.linalg.svdvals(unfolding(delta, factor, sites, 1, carrier))
    ranks = {}
    for chi in range(1, len(sigma)):
        converted, error = artent.from_lora(given, chi=chi, tensorize=factor, carrier=carrier)
        best = (sigma[chi:].norm() / sigma.norm()).item()
        assert error == pytest.approx(best, rel=1e-6, abs=1e-13)
        ranks[chi] = best
        assert converted.chains["BA".index(factor)].bonds == (min(chi, *largest_bonds(R, sites, carrier)),)
    for tol in (0.5, 0.1, 1e-2, 1e-4):
        found = artent.from_lora(given, tol=tol, tensorize=factor, carrier=carrier).update
        needed = min((chi for chi, error in ranks.items() if error <= tol), default=len(sigma))
        assert found.chains["BA".index(factor)].bonds == (needed,)


@pytest.mark.parametrize("carrier", ["first", "last"])
@pytest.mark.parametrize(("sites", "chi"), [(3, 3), (4, (5, 2, 3)), ((2, 2, 12), (4, 3))])
def test_longer_chains_lose_what_their_bonds_must_and_no_more_than_its_sum(sites, chi, carrier):
    given = update(decay=0.3)
    delta = product(given)
    converted, error = artent.from_lora(given, sites=sites, chi=chi, carrier=carrier)
    shape = converted.chains[1]
    tails = []
    for k, bond in enumerate(shape.bonds, start=1):
        tails.append(torch.linalg.svdvals(unfolding(delta, "A", shape.sites, k, carrier))[bond:].norm() / delta.norm())
    tails = torch.stack(tails)
    assert tails.max() * (1 - 1e-12) <= error <= tails.norm() * (1 + 1e-12)


@pytest.mark.parametrize("carrier", ["first", "last"])
@pytest.mark.parametrize("tol", [None, 0.5])
def test_the_squared_error_told_is_that_of_all_bonds_together(tol, carrier):
    given = update()
    cores, shape, lost = tt_svd(given.A, given.B, (4, 2, 2, 3), carrier, (3, 5, 2), tol=tol)
    delta = product(given)
    assert min(a - b for a, b in zip(largest_bonds(R, shape.sites, carrier), shape.bonds)) > 0
    assert lost == pytest.approx(((given.B @ contract(cores, shape) - delta).norm() / delta.norm()).item() ** 2)


def test_what_is_small_beside_the_rest_comes_back_too():
    generator = torch.Generator().manual_seed(4)
    given = update()
    A = given.A[:1] + 1e-11 * torch.randn(R, N, generator=generator, dtype=torch.float64)
    back = artent.from_lora(LoRAUpdate(given.B, A), sites=3).update.factors()[1]
    assert (back - A).norm() < 1e-14 * A.norm()


def test_what_the_other_factor_does_not_read_is_kept_where_there_is_room():
    given = update()
    rows, cols = balanced_sites(N)
    full = {"carrier": "first", "sites": (rows, cols)}
    for B in (torch.zeros(M, R), torch.eye(M, R), torch.eye(M, R) * torch.tensor([1, 1e-9, 0, 0, 0])):
        for A in (given.A, given.A[:1].repeat(R, 1)):  # the second leaves bonds without use
            back = artent.from_lora(LoRAUpdate(B.double(), A), **full).update.factors()[1]
            assert (back - A).norm() < 1e-13 * A.norm()
    # B reads row 0 only, of rank 2 in this unfolding: three more directions hold what they can of the others.
    generator = torch.Generator().manual_seed(3)
    read = torch.randn(rows, 2, generator=generator).double() @ torch.randn(2, cols, generator=generator).double()
    A = torch.cat([read.reshape(1, N), given.A[1:]])
    B = torch.zeros(M, R, dtype=torch.float64)
    B[:, 0] = 1
    converted, error = artent.from_lora(LoRAUpdate(B, A), chi=5, **full)
    assert error < 1e-12
    unread = A[1:].reshape(-1, cols)
    taken = torch.linalg.svd(read, full_matrices=False).Vh[:2]
    rest = torch.linalg.svdvals(unread - unread @ taken.mT @ taken)
    lost = (converted.factors()[1][1:] - A[1:]).norm()
    assert lost == pytest.approx(rest[3:].norm().item(), rel=1e-6)
    # A of a zero B is judged alone.
    alone = LoRAUpdate(torch.eye(R, dtype=torch.float64), given.A)
    zero = LoRAUpdate(torch.zeros(M, R).double(), given.A)
    for options in ({"chi": 4}, {"tol": 0.2}):
        a, b = (artent.from_lora(u, **full, **options) for u in (alone, zero))
        assert a.update.chains[1] == b.update.chains[1]
        torch.testing.assert_close(a.update.factors()[1], b.update.factors()[1])
        assert b.error == 0


@pytest.mark.parametrize("carrier", ["first", "last"])
@pytest.mark.parametrize("trained", [True, False])
def test_cores_are_as_large_as_the_adapter_draws_them(carrier, trained):
    given = update()
    if not trained:
        given = LoRAUpdate(torch.zeros_like(given.B), given.A)
    converted = artent.from_lora(given, sites=3, chi=(7, 3), carrier=carrier, tensorize="both").update
    for name, cores, shape in zip("BA", (converted.B, converted.A), converted.chains):
        torch.manual_seed(0)
        factor, draws = Factor(shape), []
        for _ in range(200):
            factor.reset(1.0)
            draws.append([core.square().mean().item() for core in factor.cores])
        drawn = torch.tensor(draws).mean(0)
        for k, core in enumerate(cores):
            if k != shape.carrier_index:
                toward = shape.bonds[k - 1 if carrier == "first" else k]
                assert core.square().mean().item() == pytest.approx(1 / toward, rel=1e-12)
                assert drawn[k].item() == pytest.approx(1 / toward, rel=0.1)  # the mean of a thousand entries and more
                flat = core.reshape(shape.full_cores[k])
                matrix = flat.flatten(1) if carrier == "first" else flat.flatten(0, 1).mT
                assert torch.linalg.matrix_rank(matrix) == min(matrix.shape), (name, k)


def test_bonds_wider_than_what_lies_beyond_them_change_nothing():
    given = update()
    wide = artent.from_lora(given, sites=(2, 4, 6), chi=(40, 2), carrier="first")
    slim = artent.from_lora(given, sites=(2, 4, 6), chi=(8, 2), carrier="first")
    assert wide.update.chains[1].bonds == (10, 2)
    torch.testing.assert_close(wide.update.dense(), slim.update.dense())


def test_a_chain_comes_back_through_lora_at_its_own_bonds():
    torch.manual_seed(0)
    cores = [torch.randn(shape, dtype=torch.float64) for shape in ((R, 4, 3), (3, 3, 2), (2, 4))]
    B = torch.randn(M, R, dtype=torch.float64)
    B[:, 2:] = 0  # what B does not read comes back too
    chain = MPSUpdate(B, [core.requires_grad_() for core in cores], 0.5)
    plain = artent.to_lora(chain)
    assert (plain.B is B, plain.scaling) == (True, 0.5)
    torch.testing.assert_close(plain.A, torch.einsum("rai,ibj,jc->rabc", *cores).reshape(R, 48), rtol=1e-13, atol=1e-13)
    plain.A.square().sum().backward()
    assert all(core.grad.norm() > 0 for core in cores)
    back, error = artent.from_lora(plain, sites=(4, 3, 4), chi=(3, 2), carrier="first")
    assert error < 1e-14
    assert (back.factors()[1] - plain.A).norm() < 1e-13 * plain.A.norm()
    short = [core.detach().bfloat16() for core in cores]
    half = artent.to_lora(MPSUpdate(B.bfloat16(), short)).A
    exact = torch.einsum("rai,ibj,jc->rabc", *(core.double() for core in short)).reshape(R, 48)
    assert half.dtype == torch.bfloat16
    assert ((half - exact).abs() <= (exact.bfloat16() - exact).abs() + 1e-12).all()  # rounded once
    half, error = artent.from_lora(LoRAUpdate(B.bfloat16(), plain.A.detach().bfloat16()), chi=3)
    expected = product(LoRAUpdate(B.bfloat16(), plain.A.bfloat16()))
    assert half.A[0].dtype == torch.bfloat16
    assert error == pytest.approx(((product(half) - expected).norm() / expected.norm()).item(), rel=1e-9)
