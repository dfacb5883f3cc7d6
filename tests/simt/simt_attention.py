"""attention_stats on the simulated machine: the parameters of csrc/attention/stats.h, filled in from tensors."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_bool, c_char_p, c_double, c_int32, c_int64, c_uint64, c_void_p

import torch
from simt_driver import OUTPUT, Driver


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
