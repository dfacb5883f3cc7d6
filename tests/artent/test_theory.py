from math import log, prod

import artent
import pytest
import torch
from artent import theory
from artent.theory.nulls import haar_frame


@pytest.mark.parametrize(("a", "b"), [(1, 7), (2, 2), (3, 5), (16, 64), (8, 2)])
def test_page_sum_and_its_asymptote(a, b):
    low, high = sorted((a, b))
    terms = sum(1 / k for k in range(high + 1, a * b + 1)) - (low - 1) / (2 * high)
    assert theory.page(a, b, exact=True) == pytest.approx(terms, abs=1e-12)
    assert theory.page(a, b) == pytest.approx(terms, abs=1 / high)
    assert theory.page(512, 1024) == pytest.approx(theory.page(1024, 512, exact=True), abs=1e-5)


def test_page_is_the_mean_over_complex_random_states():
    generator = torch.Generator().manual_seed(0)
    psi = torch.randn(4000, 3, 5, generator=generator, dtype=torch.complex128)
    p = torch.linalg.svdvals(psi).square()
    S = torch.special.entr(p / p.sum(-1, keepdim=True)).sum(-1)
    assert S.mean().item() == pytest.approx(theory.page(3, 5, exact=True), abs=5 * S.std().item() / 4000**0.5)


@pytest.mark.parametrize(("d", "rank"), [(512, 4), (512, 8), (512, 16), (512, 32), (512, 64), (1024, 32)])
def test_lora_line_is_what_gaussian_factors_do(d, rank):
    sites = round(log(d, 2))
    null = theory.gaussian_null((d, d), rank=rank, draws=6)
    line, leading = (theory.lora_line((2,) * 2 * sites, sites, rank, leading=terms) for terms in (False, True))
    assert null.mean == pytest.approx(line, abs=0.02)  # at every bond; 0.05 is asked for
    assert max(null.std) < 0.05
    assert line == pytest.approx(leading, abs=rank / d / 2 + 1e-9)


def test_lora_line_of_rectangles_and_of_ranks_beyond_a_side():
    for m, n, rank in ((256, 1024, 8), (8, 512, 64), (512, 16, 128), (1024, 256, 200)):
        null = theory.gaussian_null((m, n), rank=rank, draws=6)
        profile = artent.entanglement_profile(torch.randn(m, n))
        line = theory.lora_line(profile.dims, profile.cut, rank)
        assert null.mean == pytest.approx(line, abs=0.05)
    square = theory.lora_line((2,) * 40, 20, 2**20)  # its free product has the entropy of Fuss and Catalan
    assert square[19] == pytest.approx(20 * log(2) - 5 / 6)


@pytest.mark.parametrize("shape", [(128, 512), (512, 512)])
def test_page_line_is_what_a_gaussian_matrix_does(shape):
    null, N = theory.gaussian_null(shape, draws=4), round(log(shape[0] * shape[1], 2))
    assert null.mean == pytest.approx(theory.page_line((2,) * N), abs=0.01)


def test_rank_bound_is_reached_and_not_passed():
    assert theory.rank_bound((2, 2, 2, 2), 2) == pytest.approx([log(2), log(4), log(2)])
    assert theory.rank_bound((2,) * 8, 4, 2) == pytest.approx([log(x) for x in (2, 4, 4, 2, 4, 4, 2)])
    identity = artent.entanglement_profile(torch.eye(64))
    assert identity.cut_entropy == pytest.approx(theory.rank_bound(identity.dims, identity.cut)[5])


@pytest.mark.parametrize("factored", [False, True])
def test_nulls(factored):
    generator = torch.Generator().manual_seed(3)
    B = torch.randn(32, 3, generator=generator) * torch.tensor([4.0, 1.0, 0.3])
    update = artent.LoRAUpdate(B, torch.randn(3, 48, generator=generator))
    rank = 3 if factored else None
    update = update if factored else update.dense()
    profile = artent.entanglement_profile(update)
    haar = theory.haar_null(update, draws=4)
    assert haar.mean[profile.cut - 1] == pytest.approx(float(profile.cut_entropy), abs=1e-4)  # the same spectrum
    assert haar.std[profile.cut - 1] < 1e-4
    assert max(haar.std) > 1e-3
    assert haar == theory.haar_null(update, draws=4)
    assert haar != theory.haar_null(update, draws=4, seed=1)
    gaussian = theory.gaussian_null(update, draws=4)
    assert gaussian == theory.gaussian_null((32, 48), rank=rank, draws=4)
    bits = theory.gaussian_null(update, draws=4, log_base=2)
    assert bits.mean == pytest.approx([x / log(2) for x in gaussian.mean])
    assert theory.gaussian_null(update, draws=1).std == [0.0] * len(profile.bonds)
    own = theory.haar_null(update, draws=2, sites=((32,), (48,)))
    assert own.mean == pytest.approx([float(profile.cut_entropy)], abs=1e-4)


# (shapes of B's cores, or of B), (of A's), sites: both carriers, three cores, a χ that is no power of a site.
CHAINS = {
    "A, r first": ([(16, 4)], [(4, 4, 3), (3, 4)]),
    "A, r last": ([(16, 3)], [(4, 1), (1, 4, 3)]),
    "A, three cores": ([(16, 4)], [(4, 2, 3), (3, 4, 2), (2, 2)]),
    "B, r last": ([(4, 3), (3, 4, 4)], [(4, 16)]),
    "B, r first": ([(3, 4, 1), (1, 4)], [(3, 16)]),
    "both": ([(2, 2), (2, 2, 3), (3, 4, 4)], [(4, 4, 2), (2, 4)]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_bonds_of_a_chain_bound_the_schmidt_ranks_around_them(name):
    """The bound of Gaussian cores is the rank of the dense unfolding at every bond: neither passed nor slack."""
    generator = torch.Generator().manual_seed(0)
    B, A = ([torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for shapes in CHAINS[name])
    update = artent.MPSUpdate(*(factor[0] if len(factor) == 1 else factor for factor in (B, A)))
    W, dims = update.dense(), artent.entanglement_profile(update).dims
    ranks = [torch.linalg.matrix_rank(W.reshape(prod(dims[:l]), -1)).item() for l in range(1, len(dims))]
    cut = next(l for l in range(len(dims)) if prod(dims[:l]) == W.shape[0])
    bound = theory.rank_bound(dims, cut, update.rank, theory.core_ranks(update))
    assert bound == pytest.approx([log(rank) for rank in ranks])
    assert bound != pytest.approx(theory.rank_bound(dims, cut, update.rank))  # tighter than the rank alone


def test_a_bond_of_the_chain_says_nothing_about_one_that_it_does_not_align_with():
    primes = theory.rank_bound((2, 3, 2), 1, inner={2 * 2: 1})  # a site of 2 before one of 3: between the primes 3 · 2
    assert primes == pytest.approx(theory.rank_bound((2, 3, 2), 1))
    assert theory.rank_bound((2, 3, 2), 1, inner={2 * 3: 1}) == pytest.approx([log(2), 0])
    by_rank = theory.rank_bound((2, 2, 2, 2), 2, 1)
    assert theory.rank_bound((2, 2, 2, 2), 2, 1, inner={4: 10}) == by_rank  # where the rank says more, it stands


def test_the_null_of_a_chain_is_of_gaussian_cores():
    """Beside independent draws of the cores' contraction, and below Gaussian factors where χ holds it down."""
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randn(8, 8, 2, generator=generator), torch.randn(2, 8, generator=generator)
    update = artent.MPSUpdate(torch.randn(64, 8, generator=generator), [first, second])
    null = theory.gaussian_null(update, draws=64)
    drawn = []
    for _ in range(64):
        x, y, B = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((8, 8, 2), (2, 8), (64, 8)))
        W = B @ torch.einsum("rac,cb->rab", x, y).reshape(8, 64)
        p = torch.linalg.svdvals(W.reshape(64 * 8, 8)).square()
        drawn.append(torch.special.entr(p / p.sum()).sum())
    drawn = torch.stack(drawn)
    at = 6 + 3 - 1  # the bond of the cores: 64·8 to its left
    error = (drawn.var() / 64 + null.std[at] ** 2 / 64).sqrt().item()
    assert null.mean[at] == pytest.approx(drawn.mean().item(), abs=4 * error)
    assert null.mean[at] < log(2) < theory.gaussian_null((64, 64), rank=8, draws=4).mean[at] - 0.5


def test_haar_frames_are_haar():
    """The mean of an element over Haar frames is zero (without the sign of R it is not) and of its square 1/size."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.stack([haar_frame(4, 2, generator, torch.float64) for _ in range(4000)])
    torch.testing.assert_close(frames.mT @ frames, torch.eye(2, dtype=torch.float64).expand(4000, 2, 2))
    assert frames.mean(0).abs().max() < 0.04
    assert (frames.square().mean(0) - 0.25).abs().max() < 0.02


def test_uniform_causal_attention_grows_slowly():
    assert theory.causal_uniform(1) == pytest.approx(0, abs=1e-12)
    S = [theory.causal_uniform(T) for T in (128, 256, 512)]
    A = torch.ones(128, 128).tril().div(torch.arange(1, 129)[:, None])
    p = torch.linalg.eigvalsh(A.double() @ A.double().mT)
    assert S[0] == pytest.approx(torch.special.entr((p / p.sum()).clamp(min=0)).sum().item(), abs=1e-6)
    assert theory.fit_growth([128, 256, 512], S).c == pytest.approx(0.17, abs=0.02)  # docs/math.md §5


LAWS = {0.0: "area law", 0.5: "area law with a logarithmic correction", 1.0: "volume law", -0.5: "neither law"}


@pytest.mark.parametrize("c", LAWS)
def test_growth_fits_find_the_law_they_were_given(c):
    T = torch.tensor([16, 32, 64, 128, 256])
    noise = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = noise - noise.mean(0) * 0.9
    fit = theory.fit_growth(T, c * T.log() + 0.3 + 0.02 * noise)
    low, high = fit.interval
    assert low <= c <= high
    assert 0 < high - low < 0.05
    assert (fit.c, fit.b) == (pytest.approx(c, abs=0.01), pytest.approx(0.3, abs=0.03))
    assert fit.verdict == LAWS[c]
    assert c == 0 or fit.r_squared > 0.99
    assert fit == theory.fit_growth(T, c * T.log() + 0.3 + 0.02 * noise)


def test_one_curve_says_nothing_about_texts():
    fit = theory.fit_growth([10, 20, 40], [1.0, 1.5, 2.0])
    assert fit.c == pytest.approx(0.5 / log(2))
    assert fit.interval == pytest.approx((fit.c, fit.c))
    assert fit.verdict == "not enough texts"
    assert theory.fit_growth([10, 20], [1.0, 1.0]).r_squared == 1


def test_an_interval_that_holds_both_ends_decides_nothing():
    ln_T = torch.tensor([16.0, 64.0]).log()
    fit = theory.fit_growth([16, 64], torch.stack([-ln_T, 2 * ln_T]))
    assert fit.interval == pytest.approx((-1, 2))
    assert fit.verdict == "undecided"


def test_chain_fits_tell_three_laws_apart():
    dims = (2,) * 20
    position = torch.arange(1, 20, dtype=torch.float64)
    ring = 0.5 / 3 * (20 / torch.pi * torch.sin(torch.pi * position / 20)).log() + 0.4
    tent = 0.7 * log(2) * torch.minimum(position, 20 - position) + 0.1
    for S, name, coefficient, constant in (
        (ring, "calabrese-cardy", 0.5, 0.4),
        (tent, "linear", 0.7, 0.1),
        (torch.full((19,), 1.2), "flat", 0.0, 1.2),
    ):
        fits = theory.fit_chain(S, dims)
        best = fits[name]
        assert (best.coefficient, best.constant) == (pytest.approx(coefficient), pytest.approx(constant))
        assert best.rms < 1e-6
        assert min(fits, key=lambda form: fits[form].aic) == name
    uneven = (7, 2, 2, 3, 3, 2)  # positions are by dimension, not by count
    tent = torch.tensor([0.6 * log(min(prod(uneven[:l]), prod(uneven[l:]))) for l in range(1, 6)])
    assert theory.fit_chain(tent, uneven)["linear"].coefficient == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: theory.page(0, 3), "a, b: dimensions are at least 1"),
        (lambda: theory.rank_bound((2, 2), 3), "cut: expected between 0 and 2"),
        (lambda: theory.rank_bound((2, 2, 2), 1, inner={3: 1}), "inner: expected Schmidt ranks ≥ 1 at divisors of 8"),
        (lambda: theory.lora_line((2, 2), 1, 0), "rank: expected at least 1"),
        (lambda: theory.gaussian_null((4, 4), draws=0), "draws: expected at least one"),
        (lambda: theory.fit_growth([2, 4], torch.ones(3, 3)), r"T, S: expected \(k,\) and \(texts, k\)"),
        (lambda: theory.fit_growth([4, 4], [1.0, 1.0]), "T: expected at least two different lengths"),
        (lambda: theory.fit_growth([2, 4], [1.0, float("nan")]), "S: holds NaN or Inf"),
        (lambda: theory.fit_chain([1.0, 2.0], (2, 2, 2)), "at least 4 bonds"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("null", [theory.gaussian_null, theory.haar_null])
@pytest.mark.parametrize("update", [[torch.ones(2, 2)], (2, 3, 4), torch.ones(2)], ids=["list", "shape", "vector"])
def test_nulls_take_one_update(null, update):
    with pytest.raises(TypeError, match="update: expected one update"):
        null(update)


@pytest.mark.parametrize("options", [{"confidence": 2}, {"bootstrap": 0}])
def test_intervals_need_a_share_and_a_resampling(options):
    with pytest.raises(ValueError, match="confidence, bootstrap: expected"):
        theory.fit_growth([10, 20], [[1.0, 1.5], [1.0, 1.4]], **options)
