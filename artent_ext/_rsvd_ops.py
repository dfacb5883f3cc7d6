"""torch.ops.artent.rsvd* as citizens of PyTorch: shapes for tracing, CUDA dispatch, the algorithm from its parts.

The schemas stand in csrc/library.cpp, the algorithm in csrc/rsvd/rsvd.h; gradients in :mod:`artent_ext._rsvd_gradient`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from artent_ext import _native
from artent_ext._arguments import accumulator_dtype

ops = torch.ops.artent

# A matrix up to this size belongs to one thread block (csrc/rsvd/rsvd_cuda.cu).
_FUSED_SIDE = 512
_FUSED_WIDTH = {torch.float32: 64, torch.float64: 32}

# Below this share of ‖A‖², ‖A‖² − Σσ̂² is more the rounding of σ̂ than a residual (as in csrc/rsvd/rsvd.h).
_CANCELLATION = {torch.float32: 1e-3, torch.float64: 1e-10}


def factors(
    matmat: Callable[[Tensor], Tensor],  # (1 or B, n, q) → A X, (B, m, q)
    rmatmat: Callable[[Tensor], Tensor],  # (B, m, q) → Aᵀ Y, (B, n, q)
    m: int,
    n: int,
    rank: int,
    oversample: int,
    power_iters: int,
    seed: Tensor,  # (1 or B)
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """U (B, m, k), Vh (B, k, n) and every singular value of the sketch (B, q) in float64, of an operator.

    From products and the native parts, without waiting for the device. Source: csrc/rsvd/rsvd.h names the variables.
    """
    if m < n:
        U, Vh, sigma = factors(rmatmat, matmat, n, m, rank, oversample, power_iters, seed, dtype)
        return Vh.mT.contiguous(), U.mT.contiguous(), sigma
    k, q = min(rank, n), min(rank + oversample, n)
    Y = matmat(ops.rsvd_sketch(seed, n, q, dtype))
    for _ in range(power_iters if q < n else 0):  # a sketch as wide as the matrix spans its range
        Q, _ = ops.rsvd_orthonormalise(Y, 1, seed)
        Q, _ = ops.rsvd_orthonormalise(rmatmat(Q), 1, seed)
        Y = matmat(Q)
    Q, _ = ops.rsvd_orthonormalise(Y, 0, seed)
    Q2, R = ops.rsvd_orthonormalise(rmatmat(Q), 0, seed)
    X, sigma, W = ops.rsvd_jacobi(R)
    with without_autocast(Q):
        U = Q @ W[..., :k].to(dtype)
        Vh = X[..., :k].to(dtype).mT @ Q2.mT
    return U, Vh, sigma


def residual_of(norm2: Tensor, sigma: Tensor, k: int) -> Tensor:
    """‖A‖_F² − Σ_{i≤k} σ̂_i² (B), and no less than what the rest of the sketch holds."""
    squares = sigma.square()
    return (norm2 - squares.sum(1)).clamp_min(0.0) + squares[:, k:].sum(1)


def dense(A: Tensor, rank: int, oversample: int, power_iters: int, seed: Tensor):
    """The op rsvd from library products and the native parts: what CUDA runs where matrices are large."""
    with without_autocast(A):
        T = A.to(accumulator_dtype(A.dtype))
        # Y.mT @ A is the fast layout of AᵀY: no library transposes the large matrix.
        U, Vh, sigma = factors(
            lambda X: torch.matmul(T, X),
            lambda Y: torch.matmul(Y.mT, T).mT,
            *(A.shape[1:]),
            rank,
            oversample,
            power_iters,
            seed,
            T.dtype,
        )
    norm2 = torch.linalg.vector_norm(A, dim=(1, 2), dtype=torch.float64).square()
    k = U.shape[-1]
    S = sigma[:, :k].to(T.dtype)
    difference = residual_of(norm2, sigma, k)
    explicit = difference < _CANCELLATION[T.dtype] * norm2
    residual = torch.where(explicit, ops.rsvd_residual(T, U, S, Vh, explicit), difference)
    return with_nan(~norm2.isfinite(), U, S, Vh, residual)


def with_nan(bad: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    """Every part NaN for the matrices that ``bad`` (B) marks: their columns were filled with normals on the way."""
    return tuple(x.masked_fill(bad.view(-1, *[1] * (x.dim() - 1)), float("nan")) for x in parts)


def without_autocast(x: Tensor):
    """Products in the dtype of their operands, whatever autocast says: half precision would not be orthogonal."""
    return torch.autocast(x.device.type, enabled=False)


def fits_a_block(m: int, n: int, q: int, dtype: torch.dtype, shared_bytes: int) -> bool:
    """Can one thread block with this much shared memory hold a matrix's sketch (csrc/rsvd/small.cuh)?

    163 KiB, which A100 and H100 have, are enough for all that the op takes. Gaming cards have 99: there the panel of
    the tall side, in rows of whole groups of eight columns and four to spare, has to fit beside two tiles of A, and so
    do the two triangles of the Jacobi SVD.
    """
    dtype = accumulator_dtype(dtype)
    if max(m, n) > _FUSED_SIDE or q > _FUSED_WIDTH[dtype]:
        return False
    panel = max(m, n) * (-(-q // 8) * 8 + 4) * dtype.itemsize
    return shared_bytes >= 163 * 1024 or max(panel + 36 * 1024, 70 * 1024) <= shared_bytes


def _rsvd_cuda(A, rank, oversample, power_iters, seed):
    _, m, n = A.shape
    shared = torch.cuda.get_device_properties(A.device).shared_memory_per_block_optin
    if fits_a_block(m, n, min(rank + oversample, m, n), A.dtype, shared):
        return ops.rsvd_small(A, rank, oversample, power_iters, seed)
    return dense(A, rank, oversample, power_iters, seed)


if _native._CUDA == "loaded":
    torch.library.impl("artent::rsvd", "CUDA", _rsvd_cuda)


def _check_seed(seed, batch):
    torch._check(seed.dim() == 1 and seed.dtype == torch.int64, lambda: "seed must be a 1-d int64 tensor")
    torch._check(seed.shape[0] == 1 or seed.shape[0] == batch, lambda: f"seed must have 1 or {batch} elements")


def _rsvd_fake(A, rank, oversample, power_iters, seed):
    torch._check(A.dim() == 3, lambda: f"A must be (B, m, n), got {A.dim()}-d")
    batch, m, n = A.shape
    _check_seed(seed, batch)
    torch._check(min(rank, oversample, power_iters) >= 0, lambda: "rank, oversample and power_iters: non-negative")
    k = min(rank, m, n)
    dtype = accumulator_dtype(A.dtype)
    return (
        A.new_empty((batch, m, k), dtype=dtype),
        A.new_empty((batch, k), dtype=dtype),
        A.new_empty((batch, k, n), dtype=dtype),
        A.new_empty((batch,), dtype=torch.float64),
    )


torch.library.register_fake("artent::rsvd", _rsvd_fake)
torch.library.register_fake("artent::rsvd_small", _rsvd_fake)


@torch.library.register_fake("artent::rsvd_sketch")
def _(seed, rows, cols, dtype):
    torch._check(seed.dim() == 1 and seed.dtype == torch.int64, lambda: "seed must be a 1-d int64 tensor")
    return seed.new_empty((seed.shape[0], rows, cols), dtype=dtype)


@torch.library.register_fake("artent::rsvd_orthonormalise")
def _(Y, rounds, seed):
    torch._check(Y.dim() == 3, lambda: f"Y must be (B, m, q), got {Y.dim()}-d")
    batch, m, q = Y.shape
    torch._check(m >= q, lambda: f"Y must have at least as many rows as columns, got {m}×{q}")
    _check_seed(seed, batch)
    return Y.new_empty((batch, m, q)), Y.new_empty((batch, q, q), dtype=torch.float64)


@torch.library.register_fake("artent::rsvd_jacobi")
def _(R):
    torch._check(R.dim() == 3 and R.shape[1] == R.shape[2], lambda: "R must be (B, q, q)")
    torch._check(R.dtype == torch.float64, lambda: "R must be float64")
    batch, q, _ = R.shape
    return R.new_empty((batch, q, q)), R.new_empty((batch, q)), R.new_empty((batch, q, q))


@torch.library.register_fake("artent::rsvd_residual")
def _(A, U, S, Vh, needed):
    torch._check(A.dim() == 3, lambda: f"A must be (B, m, n), got {A.dim()}-d")
    batch, m, n = A.shape
    torch._check(S.dim() == 2 and S.shape[0] == batch, lambda: "S must be (B, k)")
    k = S.shape[1]
    torch._check(U.dim() == 3 and U.shape[1] == m and U.shape[2] == k, lambda: "U must be (B, m, k)")
    torch._check(Vh.dim() == 3 and Vh.shape[1] == k and Vh.shape[2] == n, lambda: "Vh must be (B, k, n)")
    torch._check(needed.dtype == torch.bool and needed.dim() == 1, lambda: "needed must be (B), bool")
    return A.new_empty((batch,), dtype=torch.float64)
