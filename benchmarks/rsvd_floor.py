"""The products of a randomized SVD alone, 2(niter + 1) passes over A, in the fastest layout that torch offers."""

import torch
from bench_rsvd import NITER

# Row-major or column-major factor (Xt, Yt: stored as its transpose), row-major or column-major result.
FORWARD = {
    "A @ X": lambda A, X, Xt: (A, X),
    "A @ Xt.mT": lambda A, X, Xt: (A, Xt.mT),
    "X.mT @ A.mT": lambda A, X, Xt: (X.mT, A.mT),
    "Xt @ A.mT": lambda A, X, Xt: (Xt, A.mT),
}
TRANSPOSED = {
    "A.mT @ Y": lambda A, Y, Yt: (A.mT, Y),
    "A.mT @ Yt.mT": lambda A, Y, Yt: (A.mT, Yt.mT),
    "Y.mT @ A": lambda A, Y, Yt: (Y.mT, A),
    "Yt @ A": lambda A, Y, Yt: (Yt, A),
}


def fastest_products(A, q, seconds):
    """A function that runs the products into buffers it keeps, and the names of the two layouts, the fastest of each
    direction by ``seconds(function)``."""
    (name, forward), (name_t, transposed) = (
        min(_products(A, q, layouts).items(), key=lambda item: seconds(item[1])) for layouts in (FORWARD, TRANSPOSED)
    )

    def products():
        for _ in range(NITER + 1):
            forward()
            transposed()

    return products, f"{name}, {name_t}"


def _products(A, q, layouts):
    """{layout: the product, as one batched call and as a call a matrix}."""
    inner = A.shape[-1] if layouts is FORWARD else A.shape[-2]
    X = torch.randn(A.shape[0], inner, q, device=A.device, dtype=A.dtype)
    Xt = X.mT.contiguous()
    found = {}
    for name, operands in layouts.items():
        left, right = operands(A, X, Xt)
        found[name] = _batched(left, right)
        if len(A) > 1:
            found[f"{name} looped"] = _looped(left, right)
    return found


def _batched(left, right):
    out = left @ right
    return lambda: torch.bmm(left, right, out=out)


def _looped(left, right):
    each = list(zip(left, right, left @ right))

    def run():
        for l, r, out in each:
            torch.mm(l, r, out=out)

    return run
