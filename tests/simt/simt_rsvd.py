"""The rsvd ops on the simulated machine: the parameters of csrc/rsvd/rsvd_params.h, filled in from tensors."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_bool, c_char_p, c_int, c_int64, c_uint64, c_void_p

import torch
from simt_driver import OUTPUT, SCRATCH, WRITTEN, Driver


class Strides3(Structure):
    _fields_ = [(name, c_int64) for name in "bij"]


class Seeds(Structure):
    _fields_ = [("data", c_void_p), ("stride", c_int64)]


class SmallShape(Structure):
    _fields_ = [("batch", c_int64), *((name, c_int) for name in ("m", "n", "k", "q", "power_iters"))]


class SmallParams(Structure):
    _fields_ = [
        ("shape", SmallShape),
        ("a", c_void_p),
        ("a_strides", Strides3),
        ("seeds", Seeds),
        ("left", c_void_p),
        ("left_strides", Strides3),
        ("s", c_void_p),
        ("right", c_void_p),
        ("right_strides", Strides3),
        *((name, c_void_p) for name in ("residual", "panels", "triangles")),
    ]


class SketchParams(Structure):
    _fields_ = [("seeds", Seeds), *((name, c_int64) for name in ("count", "rows", "cols")), ("out", c_void_p)]


class QrParams(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "m")),
        *((name, c_int) for name in ("q", "chunks", "round")),
        ("until_orthonormal", c_bool),
        ("seeds", Seeds),
        *((name, c_void_p) for name in ("y", "r", "partial", "triangle", "gram", "spare", "finished")),
    ]


class JacobiParams(Structure):
    _fields_ = [
        ("batch", c_int64),
        ("q", c_int),
        *((name, c_void_p) for name in ("r", "u", "s", "v", "scratch")),
    ]


class ResidualParams(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "m", "n")),
        ("k", c_int),
        ("a", c_void_p),
        ("a_strides", Strides3),
        ("u", c_void_p),
        ("u_strides", Strides3),
        ("s", c_void_p),
        ("v", c_void_p),
        ("v_strides", Strides3),
        *((name, c_void_p) for name in ("needed", "partial", "out")),
    ]


class RsvdDriver(Driver):
    """The rsvd ops as csrc/rsvd/rsvd_cuda.cu launches their kernels; arguments as the native ops take them."""

    def __init__(self, path):
        super().__init__(path)
        one_each = (("small", SmallParams), ("sketch", SketchParams), ("residual", ResidualParams))
        for name, params in one_each:
            setattr(self, f"{name}_", self.function(f"rsvd_{name}", c_char_p, POINTER(params), c_uint64))
        self.qr_ = self.function("rsvd_orthonormalise", c_char_p, POINTER(QrParams), c_int, c_uint64)
        self.jacobi_ = self.function("rsvd_jacobi", POINTER(JacobiParams), c_uint64)
        self.library.rsvd_small_panels.restype = c_int64
        self.library.rsvd_chunks.argtypes, self.library.rsvd_chunks.restype = [c_int64], c_int64
        self.library.rsvd_residual_tiles.argtypes = [c_int64, c_int64]
        self.library.rsvd_residual_tiles.restype = c_int64
        for n, params in enumerate((SmallParams, SketchParams, QrParams, JacobiParams, ResidualParams)):
            assert self.library.sizeof_rsvd(n) == ctypes.sizeof(params)

    def plan(self, m, n, k, q, is_double=False):
        """(threads, bytes of shared memory) of a block of `small`."""
        threads, size = c_int(), c_int()
        shape = SmallShape(1, m, n, k, q, 0)
        self.library.rsvd_small_plan(ctypes.byref(shape), is_double, ctypes.byref(threads), ctypes.byref(size))
        return threads.value, size.value

    def small(self, A, rank, oversample=8, power_iters=2, seed=(0,), schedule=0):
        """U, S, Vh, residual."""
        self.clear()
        real = _real(A)
        batch, m, n = A.shape
        k, q = min(rank, m, n), min(rank + oversample, m, n)
        wide = m < n
        U, S, Vh = _empty((batch, m, k), real), _empty((batch, k), real), _empty((batch, k, n), real)
        residual = _empty((batch,), torch.float64)
        shape = SmallShape(batch, max(m, n), min(m, n), k, max(q, 1), power_iters)
        panels = _empty((batch, self.library.rsvd_small_panels(ctypes.byref(shape))), real)
        triangles = _empty((batch, 2, max(q, 1), max(q, 1)), torch.float64)
        p = SmallParams(shape=shape, seeds=self._seeds(seed))
        tall = A.mT if wide else A
        left, right = (Vh.mT, U) if wide else (U, Vh.mT)
        p.a, p.a_strides = self.buffer("A", A), Strides3(*tall.stride())
        p.left, p.left_strides = self.buffer("left", left, SCRATCH), Strides3(*left.stride())
        p.right, p.right_strides = self.buffer("right", right, SCRATCH), Strides3(*right.stride())
        p.s = self.buffer("S", S, SCRATCH)
        p.residual = self.buffer("residual", residual, OUTPUT)
        p.panels = self.buffer("panels", panels, SCRATCH)
        p.triangles = self.buffer("triangles", triangles, SCRATCH)
        self.check(self.small_(_name(A), p, schedule))
        return U, S, Vh, residual

    def sketch(self, seed, rows, cols, dtype, schedule=0):
        self.clear()
        out = _empty((len(seed), rows, cols), dtype)
        seeds = self._seeds(seed)
        seeds.stride = 1
        p = SketchParams(seeds, len(seed), rows, cols, self.buffer("out", out, OUTPUT))
        self.check(self.sketch_(_name(out), p, schedule))
        return out

    def orthonormalise(self, Y, rounds=0, seed=(0,), schedule=0, in_shared=True):
        """Q, R; the Gram matrix in shared memory if it fits, or as if it did not."""
        self.clear()
        batch, m, q = Y.shape
        Q = Y.contiguous().clone()
        chunks = self.library.rsvd_chunks(m)
        packed = q * (q + 1) // 2
        p = QrParams(batch, m, q, chunks, 0, rounds == 0, self._seeds(seed))
        R = _empty((batch, q, q), torch.float64)
        p.y = self.buffer("y", Q, WRITTEN)
        p.r = self.buffer("r", R, SCRATCH)
        p.partial = self._scratch("partial", (batch, chunks, packed))
        p.triangle = self._scratch("triangle", (batch, self.library.rsvd_triangle_size(q)), Y.dtype)
        if not (in_shared and self.library.rsvd_factor_in_shared(q)):
            p.gram = self._scratch("gram", (batch, packed + q))
        p.spare = self._scratch("spare", (batch, q, q))
        p.finished = self._scratch("finished", (batch,), torch.int32)
        self.check(self.qr_(_name(Y), p, rounds, schedule))
        return Q, R

    def jacobi(self, R, schedule=0, in_shared=True):
        """U, S, V; rotated in shared memory if it fits, or as if it did not."""
        self.clear()
        self._kept = []
        batch, q, _ = R.shape
        U, S, V = (_empty(shape, torch.float64) for shape in ((batch, q, q), (batch, q), (batch, q, q)))
        p = JacobiParams(batch, q, self.buffer("r", R), *(self.buffer(x, t, OUTPUT) for x, t in zip("usv", (U, S, V))))
        if not (in_shared and self.library.rsvd_jacobi_in_shared(q)):
            p.scratch = self._scratch("scratch", (batch, 2, self.library.rsvd_jacobi_square(q)))
        self.check(self.jacobi_(p, schedule))
        return U, S, V

    def residual(self, A, U, S, Vh, needed, schedule=0):
        self.clear()
        self._kept = []
        batch, m, n = A.shape
        out = _empty((batch,), torch.float64)
        p = ResidualParams(batch, m, n, U.shape[2])
        p.a, p.a_strides = self.buffer("A", A), Strides3(*A.stride())
        p.u, p.u_strides = self.buffer("U", U), Strides3(*U.stride())
        p.v, p.v_strides = self.buffer("Vh", Vh), Strides3(*Vh.mT.stride())
        p.s, p.needed = self.buffer("S", S), self.buffer("needed", needed)
        p.partial = self._scratch("partial", (batch, self.library.rsvd_residual_tiles(m, n)))
        p.out = self.buffer("out", out, OUTPUT)
        self.check(self.residual_(_name(A), p, schedule))
        return out

    def _seeds(self, seed):
        self._kept = [torch.tensor(seed)]
        return Seeds(self.buffer("seed", self._kept[0]), 0 if len(seed) == 1 else 1)

    def _scratch(self, name, shape, dtype=torch.float64):
        self._kept.append(_empty(shape, dtype))
        return self.buffer(name, self._kept[-1], SCRATCH)


def _real(t):
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _name(t):
    return str(t.dtype).removeprefix("torch.").encode()


def _empty(shape, dtype):
    """NaN, or what stands for it: what a kernel leaves unwritten shows."""
    return (
        torch.full(shape, float("nan"), dtype=dtype) if dtype.is_floating_point else torch.full(shape, -7, dtype=dtype)
    )
