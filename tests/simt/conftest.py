"""Builds the drivers once a session and calls them on torch tensors. What the machine checks: README.md."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from ctypes import POINTER, Structure, c_bool, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ["-std=c++20", "-O1", "-shared", "-fPIC", "-Wno-psabi"]
INPUT, OUTPUT, SCRATCH, WRITTEN = range(4)  # what a kernel may do with a buffer (memory.h)


class Strides4(Structure):
    _fields_ = [(name, c_int64) for name in "bhij"]


class StatsShape(Structure):
    _fields_ = [(name, c_int64) for name in ("batch", "heads", "key_heads", "queries", "keys", "dim")]


class Visibility(Structure):
    _fields_ = [
        ("has_diagonal", c_bool),
        ("diagonal", c_int64),
        ("key_range", c_void_p),
        ("key_range_strides", Strides4),
        ("mask_kind", c_int32),
        ("mask", c_void_p),
        ("mask_strides", Strides4),
    ]


_INPUT = [
    ("shape", StatsShape),
    ("visibility", Visibility),
    ("scale", c_double),
    ("query", c_void_p),
    ("query_strides", Strides4),
    ("key", c_void_p),
    ("key_strides", Strides4),
]
ROWS = ("lse", "entropy", "purity")
GRAD_ROWS = ("grad_lse", "grad_entropy", "grad_purity")


class StatsForward(Structure):
    _fields_ = _INPUT + [(name, c_void_p) for name in ROWS]


class StatsBackward(Structure):
    _fields_ = _INPUT + [(name, c_void_p) for name in (*ROWS, *GRAD_ROWS, "grad_query", "grad_key")]


class Driver:
    """A shared library of drivers. Tensors become registered buffers; a fault becomes a RuntimeError."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.library.simt_buffer.argtypes = [c_char_p, c_void_p, c_size_t, c_int]

    def function(self, name, *argtypes):
        function = getattr(self.library, name)
        function.argtypes, function.restype = argtypes, c_char_p
        return function

    def clear(self):
        self.library.simt_clear()

    def buffer(self, name, tensor, use=INPUT):
        """Registers exactly the bytes that the tensor's strides span; returns the address."""
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        size = (last + 1) * tensor.element_size() if tensor.numel() else 0
        self.library.simt_buffer(name.encode(), tensor.data_ptr(), size, use)
        return tensor.data_ptr()

    def check(self, message):
        if message is not None:
            raise RuntimeError(message.decode())


class AttentionDriver(Driver):
    """attention_stats and its backward as the CUDA kernels compute them; arguments as the native ops take them."""

    def __init__(self, path):
        super().__init__(path)
        self.forward_ = self.function("attention_stats", c_char_p, POINTER(StatsForward), c_uint64)
        self.backward_ = self.function("attention_stats_backward", c_char_p, POINTER(StatsBackward), c_uint64)
        assert self.library.sizeof_stats_forward() == ctypes.sizeof(StatsForward)
        assert self.library.sizeof_stats_backward() == ctypes.sizeof(StatsBackward)

    def forward(self, query, key, attn_mask=None, key_range=None, diagonal=None, scale=1.0, seed=0):
        p = StatsForward()
        self._input(p, query, key, attn_mask, key_range, diagonal, scale)
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        rows = [torch.full(query.shape[:3], float("nan"), dtype=dtype) for _ in ROWS]
        for name, row in zip(ROWS, rows):
            setattr(p, name, self.buffer(name, row, OUTPUT))
        self.check(self.forward_(str(query.dtype).removeprefix("torch.").encode(), p, seed))
        return rows

    def backward(self, grads, rows, query, key, attn_mask=None, key_range=None, diagonal=None, scale=1.0, seed=0):
        p = StatsBackward()
        self._input(p, query, key, attn_mask, key_range, diagonal, scale)
        for name, row in zip((*ROWS, *GRAD_ROWS), (*rows, *grads)):
            setattr(p, name, None if row is None else self.buffer(name, row))
        out = [torch.full(x.shape, float("nan"), dtype=x.dtype) for x in (query, key)]
        for name, grad in zip(("grad_query", "grad_key"), out):
            setattr(p, name, self.buffer(name, grad, OUTPUT))
        self.check(self.backward_(str(query.dtype).removeprefix("torch.").encode(), p, seed))
        return out

    def _input(self, p, query, key, attn_mask, key_range, diagonal, scale):
        self.clear()
        b, h, queries, dim = query.shape
        p.shape = StatsShape(b, h, key.shape[1], queries, key.shape[2], dim)
        p.scale = scale
        p.query, p.query_strides = self.buffer("query", query), Strides4(*query.stride())
        p.key, p.key_strides = self.buffer("key", key), Strides4(*key.stride())
        v = p.visibility
        v.has_diagonal, v.diagonal = diagonal is not None, diagonal or 0
        if key_range is not None:
            key_range = key_range.expand(b, h, queries, 2)
            v.key_range, v.key_range_strides = (
                self.buffer("key_range", key_range),
                Strides4(*key_range.stride()),
            )
        if attn_mask is not None:
            attn_mask = attn_mask.expand(b, h, queries, key.shape[2])
            v.mask_kind = 1 if attn_mask.dtype == torch.bool else 2
            v.mask, v.mask_strides = self.buffer("attn_mask", attn_mask), Strides4(*attn_mask.stride())


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


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Compiles one driver of this folder; returns the path of its shared library."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    folder = tmp_path_factory.mktemp("simt")

    def compile_driver(source):
        path = folder / f"{source}.so"
        command = [compiler, *FLAGS, f"-I{HERE}", f"-I{CSRC}", str(HERE / source), "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        return path

    return compile_driver


@pytest.fixture(scope="session")
def attention(build):
    return AttentionDriver(build("attention_driver.cpp"))


@pytest.fixture(scope="session")
def rsvd(build):
    return RsvdDriver(build("rsvd_driver.cpp"))


@pytest.fixture(scope="session")
def planted(build):
    return Driver(build("planted_driver.cpp"))
