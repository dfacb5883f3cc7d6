"""Entropies at every bond of a dense update, the outer ones exact, those in the middle estimated (docs/math.md §3).

At a bond of smaller dimension D the reduced density matrix is ρ = M Mᵀ/‖W‖², M being W's own memory seen as D rows, or
on the right of the middle as D columns. So a product of ρ with sixteen columns reads W twice and stores nothing of its
size, and one to four of them are as much as 1 % takes, whether the spectrum decays or not. From the outermost bond to
where a density matrix costs less than that, one Gram matrix a side gives exact spectra.
"""

from math import ceil, log, sqrt

import torch
from torch import Tensor

from artent.entropy import certificate
from artent.schmidt import exact
from artent.schmidt.costs import exact_cost, sides, size
from artent.schmidt.lanczos import Estimate, estimates
from artent.schmidt.plan import Plan
from artent.schmidt.spectrum import Estimated, Spectrum
from artent.sites import Chain
from artent_ext import _native  # noqa: F401 (registers torch.ops.artent)

_SHARE = 0.01  # of S, the standard error where nobody says
_LEAST = 1e-3  # nats, of it: a product state has S = 0
_WIDTH = 16  # columns of the first block; narrower products take as long
_STEPS = 8  # before a wider block is tried
_USUAL = 2.5  # steps that a bond takes
_GRAM = 256  # up to this size Gram matrices are float32 products summed up in float64
_LINES = 8192  # of such a product
_STAKE = 0.75  # a bond may spend this share of what exact costs before it gives up
_RANGE = 1e9  # of W's largest element and its inverse: float32 then holds squares and their sums
_STRIDE = 0x9E3779B97F  # between the seeds of bonds


def estimated(W: Tensor, chain: Chain, plan: Plan) -> list[Spectrum | Estimated]:
    """Entropies of W (m, n), finite and not zero, at each bond 1 … N−1, with a standard error within the plan's.

    Bonds that no estimate in reach brings there are exact, with those beyond them. Results are functions of W and
    ``plan.seed``; for a W that requires a gradient they require one too, and refuse to be differentiated.
    """
    split = [_split(chain, side) for side in sides(chain)]
    if not any(split):
        return [Spectrum(p) for p in exact.dense(W[None], chain)]
    with torch.no_grad():
        spectra = _spectra(W, chain, plan, split)
    return [_fixed(spectrum, W) for spectrum in spectra]


def _spectra(W: Tensor, chain: Chain, plan: Plan, split: list[int]) -> list[Spectrum | Estimated]:
    X = _working(W, plan)
    spectra: list = [None] * len(chain.bonds)
    norm2 = None
    for on_left, side, inner in zip((True, False), sides(chain), split):
        if inner < len(side):
            found, trace = _ladder(W, X, chain, plan, side[inner:], on_left)
            spectra, norm2 = _filled(spectra, side[inner:], found), trace or norm2
    norm2 = norm2 or torch.linalg.vector_norm(X, dtype=torch.float64).square().item()
    for on_left, side, inner in zip((True, False), sides(chain), split):
        probes = _Probes(X, size(chain, side[inner - 1]), on_left, plan.seed) if inner else None
        for at, bond in enumerate(side[:inner]):
            M = _unfolding(X, size(chain, bond), on_left)
            budget = _STAKE * exact_cost(chain, 1.0, side[at:])
            found = _estimate(M, norm2, probes, plan, budget)
            if found is None:
                double = plan.nats < exact.TOLERANCE
                ladder = exact.outwards(W[None], chain, bond, on_left, double)
                spectra = _filled(spectra, side[at:], [Spectrum(p) for p in ladder])
                break
            spectra[bond - 1] = _bounded(found, M)
    return _narrowed(spectra, chain)


def _filled(spectra: list, bonds: list[int], found: list) -> list:
    given = dict(zip(bonds, found, strict=True))
    return [given.get(l, spectrum) for l, spectrum in enumerate(spectra, 1)]


def _split(chain: Chain, side: list[int]) -> int:
    """How many bonds of a side, from the middle, are estimated: as many as make the whole cheapest."""
    m, n = chain.shape
    costs, inner = [], 0.0
    for at in range(len(side) + 1):
        D = size(chain, side[at]) if at < len(side) else 0
        ends = D * m * n + sum(5 * size(chain, l) ** 3 + 1e7 for l in side[at:])
        costs.append(inner + (ends if D <= _GRAM else exact_cost(chain, 1.0, side[at:])))
        inner += _USUAL * _step_cost(m * n, _WIDTH) if D >= 8 * _WIDTH else float("inf")
    return costs.index(min(costs))


def _step_cost(numbers: int, width: int) -> float:
    """Of two narrow products and the small calls, in the unit of ``costs``."""
    return numbers * (3.2 * width + 25) + 1e8


def _working(W: Tensor, plan: Plan) -> Tensor:
    """W (mn), contiguous, in the precision of the products, and scaled where its squares would leave float32."""
    double = plan.nats < exact.TOLERANCE or exact.reduced_products()
    low, high = (x.item() for x in W.aminmax())
    peak = max(-low, high)
    if not 1 / _RANGE < peak < _RANGE:
        W = W.double() / peak
    return W.to(torch.float64 if double else torch.float32).contiguous().view(-1)


def _unfolding(X: Tensor, D: int, on_left: bool) -> Tensor:
    """M (D, ·), a view of X."""
    return X.view(D, -1) if on_left else X.view(-1, D).mT


def _ladder(
    W: Tensor, X: Tensor, chain: Chain, plan: Plan, bonds: list[int], on_left: bool
) -> tuple[list[Spectrum], float | None]:
    """Exact spectra at the bonds, from the innermost outwards, and ‖X‖² if it came with them."""
    D = size(chain, bonds[0])
    double = plan.nats < exact.TOLERANCE
    if D > _GRAM:
        return [Spectrum(p) for p in exact.outwards(W[None], chain, bonds[0], on_left, double)], None
    G = sum((block @ block.mT).double() for block in _unfolding(X, D, on_left).split(_LINES, 1))
    sites = chain.dims[: bonds[0]] if on_left else chain.dims[bonds[0] :]
    ladder = exact.descend(G[None], sites, on_left)
    if X.dtype != torch.float64 and not all(exact.trustworthy(p, _tolerance(p, plan)) for p in ladder):
        ladder = exact.outwards(W[None], chain, bonds[0], on_left, True)
    return [Spectrum(p) for p in ladder], G.trace().item()


def _tolerance(p: Tensor, plan: Plan) -> float:
    """A tenth of the standard error of estimated bonds: exact beside them, and not less exact than elsewhere."""
    return max(exact.TOLERANCE, 0.1 * _target(Spectrum(p).entropy(1.0).item(), plan))


def _target(S: float, plan: Plan) -> float:
    return max(_SHARE * S, _LEAST) if plan.max_error is None else plan.nats


class _Probes:
    """Random signs Ω (D, b) for the estimated bonds of one side, whose images MᵀΩ come from one product.

    At the outermost they are x, of D₀ rows; at a bond of s·D₀ the columns x ⊗ h, with signs h (s, b) of its own for the
    s slices of W that the images of x belong to. Wider ones are all its own, without an image.
    """

    def __init__(self, X: Tensor, D: int, on_left: bool, seed: int):
        self.X, self.on_left, self.seed = X, on_left, seed
        self.first = self._signs(D, _WIDTH, 1)
        self.image = _unfolding(X, D, on_left).mT @ self.first

    def shared(self, D: int) -> tuple[Tensor, Tensor]:
        """(D, b) signs and their image (N/D, b)."""
        h = self._signs(D // len(self.first), _WIDTH, 2 * D)
        if self.on_left:
            image = (self.image.view(len(h), -1, _WIDTH) * h[:, None]).sum(0)
            return (self.first[:, None] * h).flatten(0, 1), image
        return (h[:, None] * self.first).flatten(0, 1), (self.image.view(-1, len(h), _WIDTH) * h).sum(1)

    def own(self, D: int, width: int) -> Tensor:
        return self._signs(D, width, 2 * D + width)

    def _signs(self, rows: int, width: int, purpose: int) -> Tensor:
        seed = (self.seed + (2 * purpose + self.on_left) * _STRIDE) % 2**62
        seed = torch.tensor([seed], device=self.X.device)
        return torch.ops.artent.rsvd_sketch(seed, rows, width, self.X.dtype)[0].sign()


def _estimate(M: Tensor, norm2: float, probes: _Probes, plan: Plan, budget: float) -> Estimate | None:
    """S of ρ = M Mᵀ/‖M‖² to the plan's standard error; None where that takes more than the budget.

    More steps, while they help: against the bias of the quadrature, and against chance where the spectrum decays and
    leading eigenvalues converge. Then a wider block.
    """
    D, width = M.shape[0], _WIDTH
    signs, image = probes.shared(D)
    image = M @ (image / norm2)
    while True:
        step, chance = _step_cost(M.numel(), width), float("inf")
        for found in estimates(lambda Q: M @ (M.mT @ Q / norm2), signs, image):
            target = _target(found.value, plan)
            if found.stderr <= target:
                return found
            budget -= step
            stuck = found.steps > 3 and found.chance > max(target, 0.8 * chance)
            if budget < step or stuck or found.steps == _STEPS or (found.steps + 1) * width > D:
                break
            chance = found.chance
        width *= max(2, min(8, ceil((found.chance / target) ** 2)))
        if 2 * width > D or budget < _step_cost(M.numel(), width):
            return None
        signs, image = probes.own(D, width), None


def _bounded(found: Estimate, M: Tensor) -> Estimated:
    """With what is certain: the bounds that the Ritz values leave.

    The products round by ‖δρ v‖ ≤ (√D + √K)u for each of k columns, roundings taken to add up like the root of their
    number, and so the compression of ρ to k dimensions by k times that in trace norm.
    """
    p = found.ritz.to(M.device)
    rounding = len(p) * (sqrt(M.shape[0]) + sqrt(M.shape[1])) * torch.finfo(M.dtype).eps / 2 + found.distance
    lower, upper = certificate(p, (1 - p.sum()).clamp_min(0.0), M.shape[0], rounding=rounding)
    value, deviation = (p.new_tensor([x]) for x in (found.value, found.stderr))
    return Estimated(p[None], value, deviation, lower[None], upper[None])


def _narrowed(spectra: list, chain: Chain) -> list:
    """The estimated bonds with what the bounds at other bonds leave of theirs.

    A site of dimension d between two bonds makes no more than ln d of difference: S(AB) ≤ S(A) + ln d, and by Araki and
    Lieb S(AB) ≥ S(A) − ln d.
    """
    bounds = [spectrum.bounds(1.0) for spectrum in spectra]
    # What a float32 ladder calls exact is so to its tolerance.
    slack = [0.0 if spectrum.method == "hybrid" else exact.TOLERANCE for spectrum in spectra]
    lower = [low - x for (low, _), x in zip(bounds, slack)]
    upper = [high + x for (_, high), x in zip(bounds, slack)]
    steps = [log(d) for d in chain.dims[1:-1]]
    for order in (range(1, len(spectra)), range(len(spectra) - 2, -1, -1)):
        for at in order:
            before = at - order.step
            step = steps[min(at, before)]
            lower[at] = lower[at].maximum(lower[before] - step)
            upper[at] = upper[at].minimum(upper[before] + step)
    return [
        s._replace(lower=low, upper=high, value=s.value.clamp(low, high)) if isinstance(s, Estimated) else s
        for s, low, high in zip(spectra, lower, upper, strict=True)
    ]


class _Fixed(torch.autograd.Function):
    """Numbers as a function of W that has no derivative here."""

    @staticmethod
    def forward(ctx, x: Tensor, W: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        raise NotImplementedError(
            "profiles by method='hybrid' have no derivatives: its estimates are functions of random probes, stopped"
            " where they are good enough. Use method='exact' or 'randomized' for a loss, or .detach() the update"
        )


def _fixed(spectrum, W: Tensor):
    if not (W.requires_grad and torch.is_grad_enabled()):
        return spectrum
    return type(spectrum)(*(_Fixed.apply(x, W) if isinstance(x, Tensor) else x for x in spectrum))
