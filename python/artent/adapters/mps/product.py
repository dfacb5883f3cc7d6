"""base + scaling · x Aᵀ Bᵀ, the factors given as chains of cores, in the cheapest order; A and B are never saved.

Autograd keeps the input, the hidden state (tokens, r) and the parameters: no more than LoRA keeps, and no casts of
them. (Under autocast LoRA keeps a cast of a float32 input for every projection that reads it, this keeps the input
itself, once for all of them: more where there is only one.) A product walks over *blocks* of neighbouring cores: each
is contracted first, then meets the tokens. One block is the dense factor; a block for every core never forms it.
``grouping`` counts what each choice costs.
"""

from contextlib import nullcontext
from functools import lru_cache
from itertools import chain, pairwise
from math import prod
from operator import itemgetter

import torch
from torch import Tensor

from artent.mps import MPSShape, full_cores, merge, merge_gradient

_MANY_TOKENS = 4096  # what a compiled graph is planned for: its number of tokens may be symbolic
# What a product costs, in multiply-adds, roughly (measured on CPUs; a GPU's tiles are no narrower):
_MOVE = 24  # moving one element of a state through memory
_TURN = 170  # the same where a contraction over tokens has to turn it round first
_NARROW = 32  # a product with fewer columns than this is no faster


class AdaptedOutput(torch.autograd.Function):
    """``base + scaling · x Aᵀ Bᵀ``: x (…, n), base (…, m), A (r, n) and Bᵀ (r, m) by their shapes and cores.

    ``cores`` are A's, then B's. Computed in ``dtype`` whatever autocast says; the result has base's dtype.
    """

    @staticmethod
    def forward(ctx, x, base, scaling, dtype, a_shape, b_shape, *cores):
        ctx.given = scaling, dtype, a_shape, b_shape
        with _no_autocast(x):
            rows, (A, B) = _open(ctx, x, cores, backward=False)
            hidden = A.inward(rows)[0] * scaling
            onto = base.reshape(-1, b_shape.dimension)
            if onto.dtype == dtype:
                out = B.outward(hidden, onto)[0]
            else:
                out = (onto + B.outward(hidden)[0]).to(onto.dtype)
        ctx.save_for_backward(x, hidden, *cores)
        return torch.ops.aten._unsafe_view(out, base.shape)  # no view for autograd, so that it may be written in place

    @staticmethod
    def backward(ctx, above):
        x, hidden, *cores = ctx.saved_tensors
        scaling, dtype, a_shape, b_shape = ctx.given
        count = len(a_shape.sites)
        want_x, want_base, *want_cores = (*ctx.needs_input_grad[:2], *ctx.needs_input_grad[6:])
        want_a, want_b = any(want_cores[:count]), any(want_cores[count:])
        found_x, found_a, found_b = None, [None] * count, [None] * len(b_shape.sites)
        with _no_autocast(x):
            rows, (A, B) = _open(ctx, x, cores, backward=True)
            if torch.is_grad_enabled():  # a second derivative is wanted: it goes through the hidden state too
                hidden = A.inward(rows)[0] * scaling
            below, above_B = B.inward(above.reshape(-1, b_shape.dimension).to(dtype))
            if want_b:
                found_b = B.core_gradients(above_B, B.outward(hidden, finish=False)[1])
            if want_a or want_x:
                found_x, below_A = A.outward(below * scaling, finish=want_x)
            if want_a:
                found_a = A.core_gradients(A.inward(rows, finish=False)[1], below_A)
        if want_x:
            found_x = found_x.to(x.dtype).reshape(x.shape)
        found = [f if wanted else None for f, wanted in zip([*found_a, *found_b], want_cores)]
        return found_x, above if want_base else None, None, None, None, None, *found


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast asks for where x lives, or None; it leaves float64 alone."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if x.dtype != torch.float64 and _autocasts(kind) else None


def _autocasts(kind):
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # "meta" knows none


def _no_autocast(x):
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if _autocasts(kind) else nullcontext()


def _open(ctx, x, cores, backward):
    """The tokens as rows in the dtype computed in, and both factors in blocks."""
    _, dtype, *shapes = ctx.given
    rows = x.reshape(-1, shapes[0].dimension).to(dtype)
    if torch.compiler.is_compiling():  # which does not see through the cache, and may not know how many tokens
        sizes = [_cheapest(shape, _MANY_TOKENS, backward) for shape in shapes]
    else:
        sizes = [grouping(shape, len(rows), backward) for shape in shapes]
    count = len(shapes[0].sites)
    parts = cores[:count], cores[count:]
    return rows, [_Blocks(shape, part, dtype, size) for shape, part, size in zip(shapes, parts, sizes)]


class _Blocks:
    """A factor (r, n) as blocks of contracted cores, nearest the carrier first, and its products with tokens.

    A block is a matrix (near bond, D · far bond), r the nearest bond of all. Between blocks a state is
    (tokens · P, near) with the carrier first and (tokens, near, P) with it last, P the sites of the nearer blocks:
    products of plain matrices, nothing is transposed.
    """

    def __init__(self, shape: MPSShape, cores, dtype, sizes):
        self.shape, self.first = shape, shape.carrier == "first"
        cores, ends = full_cores(cores, shape), [sum(sizes[:k]) for k in range(len(sizes) + 1)]
        self.cores = [cores[a:b] for a, b in pairwise(ends)]
        if not self.first:
            self.cores.reverse()
        self.states = [merge(block, shape.carrier) for block in self.cores]
        blocks = [states[-1].to(dtype) for states in self.states]
        self.matrices = [block.flatten(1) if self.first else block.flatten(0, 1).mT for block in blocks]
        sites = [block.shape[1] for block in blocks]
        self.before = [prod(sites[:k]) for k in range(len(sites))]  # P of every block

    def inward(self, rows: Tensor, finish=True):
        """rows · Fᵀ, (tokens, n) → (tokens, r), or None unless ``finish``; and every block's input."""
        states, state = [], rows
        for matrix, P in zip(reversed(self.matrices), reversed(self.before)):
            flat = self.first or P == 1
            state = state.reshape((len(rows) * P, matrix.shape[1]) if flat else (len(rows), matrix.shape[1], P))
            states.insert(0, state)
            if len(states) == len(self.matrices) and not finish:
                return None, states
            state = state @ matrix.mT if flat else matrix @ state
        return state, states

    def outward(self, hidden: Tensor, onto: Tensor | None = None, finish=True):
        """``onto`` + hidden · F, (tokens, r) → (tokens, n), or None unless ``finish``; and every block's input."""
        states, state = [], hidden
        for matrix, P in zip(self.matrices, self.before):
            flat = self.first or P == 1
            state = state.reshape((len(hidden) * P, matrix.shape[0]) if flat else (len(hidden), matrix.shape[0], P))
            states.append(state)
            last = len(states) == len(self.matrices)
            if last and not finish:
                return None, states
            if flat and last and onto is not None:
                state, onto = torch.addmm(onto.reshape(len(state), matrix.shape[1]), state, matrix), None
            else:
                state = state @ matrix if flat else matrix.mT @ state
        out = state.reshape(len(hidden), self.shape.dimension)
        return (out if onto is None else onto + out), states

    def core_gradients(self, inner: list[Tensor], outer: list[Tensor]) -> list[Tensor]:
        """The gradient of every core as stored, from the states of both walks."""
        found = []
        for cores, states, into, out in zip(self.cores, self.states, inner, outer):
            matrix = out.mT @ into if into.ndim == 2 else torch.einsum("tnp,twp->nw", out, into)
            gradient = (matrix if self.first else matrix.mT).to(cores[0].dtype).reshape(states[-1].shape)
            found.append(merge_gradient(cores, states, self.shape.carrier, gradient))
        gradients = chain.from_iterable(found if self.first else reversed(found))
        return [gradient.reshape(core) for gradient, core in zip(gradients, self.shape.cores)]


@lru_cache(maxsize=1024)
def grouping(shape: MPSShape, tokens: int, backward: bool) -> tuple[int, ...]:
    """How many cores each block takes, in site order: the choice of least cost for ``tokens`` rows.

    Cost counts multiply-adds and what moving the states between blocks takes. It adds up over blocks, so the best way
    to group the cores nearest the carrier is extended one core at a time. On a tie blocks are the larger.
    """
    return _cheapest(shape, tokens, backward)


def _cheapest(shape, tokens, backward):
    first = shape.carrier == "first"
    cores = shape.full_cores if first else [core[::-1] for core in reversed(shape.full_cores)]  # from the carrier on
    found = [(0, ())]  # of the first 0, 1, … cores: the least cost and the blocks
    for end in range(1, len(cores) + 1):
        ways = []
        for start, (cost, sizes) in enumerate(found):
            ways.append((cost + _cost(cores, start, end, tokens, backward, first), (*sizes, end - start)))
        found.append(min(ways, key=itemgetter(0)))
    sizes = found[-1][1]
    return sizes if first else sizes[::-1]


def _cost(cores, start, end, tokens, backward, first):
    """Of the block of ``cores`` (near bond, site, far bond) from ``start`` to ``end``, the carrier's end first."""
    near, (D, far), merging = cores[start][0], cores[end - 1][1:], 0
    for left, site, bond in reversed(cores[start : end - 1]):
        merging += left * site * bond * D * far
        D *= site
    before = prod([site for _, site, _ in cores[:start]])  # a list: torch.compile takes no generator here
    product = before * max(near, _NARROW) * D * far
    moved = before * near if start else 0  # the state between this block and the nearer ones
    if not backward:
        return merging + tokens * (product + _MOVE * moved)
    turned = 0 if first or not start else before * D * far
    return 3 * merging + tokens * ((3 if start else 2) * product + 3 * _MOVE * moved + _TURN * turned)
