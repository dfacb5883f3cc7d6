"""Attention on the simulated machine: the parameters of csrc/attention/attention.h, filled in from tensors."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_bool, c_double, c_int, c_int32, c_int64, c_uint64, c_void_p

import torch
from simt_driver import OUTPUT, SCRATCH, Driver


class Strides4(Structure):
    _fields_ = [(name, c_int64) for name in "bhij"]


class Shape(Structure):
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


class Logits(Structure):
    _fields_ = [
        ("shape", Shape),
        ("visibility", Visibility),
        ("scale", c_double),
        ("softcap", c_double),
        ("query", c_void_p),
        ("query_strides", Strides4),
        ("key", c_void_p),
        ("key_strides", Strides4),
    ]


class Columns(Structure):
    _fields_ = [("data", c_void_p), ("strides", Strides4), ("columns", c_int64), ("group", c_int64)]


ROWS = ("lse", "entropy", "purity")
GRAD_ROWS = ("grad_lse", "grad_entropy", "grad_purity")


class Forward(Structure):
    _fields_ = [("a", Logits), ("value", Columns)] + [(name, c_void_p) for name in ("out", *ROWS, "lse_low")]


class Apply(Structure):
    _fields_ = [
        ("a", Logits),
        ("x", Columns),
        ("x_is_accumulator", c_bool),
        ("transpose", c_bool),
        ("lse", c_void_p),
        ("lse_low", c_void_p),
        ("out", c_void_p),
    ]


class Backward(Structure):
    _fields_ = (
        [("a", Logits)]
        + [(name, c_void_p) for name in ("lse", "lse_low", *ROWS[1:], *GRAD_ROWS)]
        + [("grad_out", Columns), ("value", Columns)]
        + [(name, c_void_p) for name in ("delta", "grad_query", "grad_key", "grad_value")]
    )


def accumulator(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _empty(*shape, dtype):
    return torch.full(shape, float("nan"), dtype=dtype)


class AttentionDriver(Driver):
    """The ops of one dtype as the CUDA kernels compute them; options as the native ops take them.

    ``multiprocessors`` of the machine: many make blocks share their tiles. ``seed`` orders blocks and threads.
    """

    def __init__(self, path):
        super().__init__(path)
        for name, struct in (("forward", Forward), ("apply", Apply), ("backward", Backward)):
            setattr(self, f"{name}_", self.function(f"attention_{name}", POINTER(struct), c_int, c_uint64))
            assert getattr(self.library, f"sizeof_{name}")() == ctypes.sizeof(struct)

    def forward(self, query, key, value=None, *, multiprocessors=1, seed=0, **options):
        """[lse, entropy, purity], and A·value in front if there is a value."""
        p = Forward()
        self._logits(p.a, query, key, **options)
        rows = [_empty(*query.shape[:3], dtype=accumulator(query.dtype)) for _ in ROWS]
        for name, row in zip(ROWS, rows):  # the scalar kernels read lse back for A·value
            setattr(p, name, self.buffer(name, row, SCRATCH if name == "lse" else OUTPUT))
        if value is not None:
            out = _empty(*query.shape[:3], value.shape[-1], dtype=query.dtype)
            p.value, p.out = self._columns("value", value, query), self.buffer("out", out, OUTPUT)
            rows.insert(0, out)
        self.check(self.forward_(p, multiprocessors, seed))
        return rows

    def apply(self, query, key, x, lse, transpose=False, *, multiprocessors=1, seed=0, **options):
        p = Apply()
        self._logits(p.a, query, key, **options)
        rows = key.shape[2] if transpose else query.shape[2]
        out = _empty(*query.shape[:2], rows, x.shape[-1], dtype=x.dtype)
        p.x, p.lse, p.out = self._columns("x", x, query), self.buffer("lse", lse), self.buffer("out", out, OUTPUT)
        p.transpose, p.x_is_accumulator = transpose, x.dtype == accumulator(query.dtype)
        self.check(self.apply_(p, multiprocessors, seed))
        return out

    def backward(
        self, grads, rows, query, key, grad_out=None, value=None, delta=None, *, multiprocessors=1, seed=0, **options
    ):
        """[grad_query, grad_key], and grad_value if there is a value."""
        p = Backward()
        self._logits(p.a, query, key, **options)
        for name, row in zip((*ROWS, *GRAD_ROWS, "delta"), (*rows, *grads, delta)):
            setattr(p, name, None if row is None else self.buffer(name, row))
        inputs = {"grad_query": query, "grad_key": key}
        if value is not None:
            p.grad_out, p.value = self._columns("grad_out", grad_out, query), self._columns("value", value, query)
            inputs["grad_value"] = value
        out = [_empty(*x.shape, dtype=x.dtype) for x in inputs.values()]
        for name, grad in zip(inputs, out):
            setattr(p, name, self.buffer(name, grad, OUTPUT))
        self.check(self.backward_(p, multiprocessors, seed))
        return out

    def _columns(self, name, x, query):
        return Columns(self.buffer(name, x), Strides4(*x.stride()), x.shape[-1], query.shape[1] // x.shape[1])

    def _logits(self, a, query, key, attn_mask=None, key_range=None, diagonal=None, scale=1.0, softcap=None):
        self.clear()
        b, h, queries, dim = query.shape
        a.shape = Shape(b, h, key.shape[1], queries, key.shape[2], dim)
        a.scale, a.softcap = scale, softcap or 0.0
        a.query, a.query_strides = self.buffer("query", query), Strides4(*query.stride())
        a.key, a.key_strides = self.buffer("key", key), Strides4(*key.stride())
        v = a.visibility
        v.has_diagonal, v.diagonal = diagonal is not None, diagonal or 0
        if key_range is not None:
            key_range = key_range.expand(b, h, queries, 2)
            v.key_range, v.key_range_strides = self.buffer("key_range", key_range), Strides4(*key_range.stride())
        if attn_mask is not None:
            attn_mask = attn_mask.expand(b, h, queries, key.shape[2])
            v.mask_kind = 1 if attn_mask.dtype == torch.bool else 2
            v.mask, v.mask_strides = self.buffer("attn_mask", attn_mask), Strides4(*attn_mask.stride())
