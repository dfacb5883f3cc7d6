"""Asynchronous copies and matrix fragments of the simulated machine: sound ones work, planted mistakes show."""

from __future__ import annotations

from ctypes import c_bool, c_char_p, c_uint64, c_void_p

import pytest
import torch
from simt_driver import OUTPUT

SEEDS = range(5)

FAULTS = {
    "no wait": "read before its copy was waited for",
    "no commit": "read before its copy was waited for",
    "a group too few": "read before its copy was waited for",
    "no barrier": "race|uninitialised|read before its copy",
    "waited for after the barrier": "race|read before its copy",
    "copied over what is being read": "race: (read and written|written and read)|read before its copy",
    "stored under a copy": "written while a copy to it is under way",
    "misaligned": "misaligned source of an asynchronous copy",
    "past the end": "copies out of bounds: in \\+ 1024",
    "past the panel": "out of bounds of a shared panel of 64 rows of 3 chunks: row .*, chunk 3",
    "half a warp multiplies": "divergent barrier.*has returned",
}


@pytest.fixture
def copy(planted_tensor):
    function = planted_tensor.function("planted_copy", c_char_p, c_void_p, c_void_p, c_uint64)
    storage = torch.arange(260.0)
    given = storage[-storage.data_ptr() % 16 // 4 :][:256]  # on a 16-byte boundary

    def run(name, seed):
        planted_tensor.clear()
        out = torch.full((64,), float("nan"))
        at = planted_tensor.buffer("in", given), planted_tensor.buffer("out", out, OUTPUT)
        planted_tensor.check(function(name.encode(), *at, seed))
        return given, out

    return run


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(copy, name):
    for seed in SEEDS:
        with pytest.raises(RuntimeError, match=FAULTS[name]):
            copy(name, seed)


def test_sound_copies_pass(copy):
    for seed in SEEDS:
        given, out = copy("sound", seed)
        given = given.view(64, 4).roll(-1, 0)
        assert torch.equal(out, given[:, 0])
        assert torch.equal(copy("sound, two groups", seed)[1], given[:, 0] + given[:, 1])


@pytest.fixture
def product(planted_tensor):
    function = planted_tensor.function("planted_product", c_char_p, c_void_p, c_void_p, c_void_p, c_bool, c_char_p)

    def run(a, b, transposed=False, fault=""):
        planted_tensor.clear()
        out = torch.full((16, 16), float("nan"))
        at = [planted_tensor.buffer(*x) for x in (("a", a), ("b", b), ("out", out, OUTPUT))]
        name = str(a.dtype).removeprefix("torch.").encode()
        planted_tensor.check(function(name, *at, transposed, fault.encode()))
        return out

    return run


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_fragments(product, dtype):
    """A Bᵀ, and A B through the transposing load; small integers are exact in every type."""
    random = torch.Generator().manual_seed(0)
    depth = 8 if dtype == torch.float32 else 16
    a, b = (torch.randint(-8, 9, (16, depth), generator=random).to(dtype) for _ in range(2))
    assert torch.equal(product(a, b), a.float() @ b.float().mT)
    if depth == 16:
        assert torch.equal(product(a, b, transposed=True), a.float() @ b.float())
    for fault in ("rows for columns", "the other half"):
        assert not torch.equal(product(a, b, fault=fault), a.float() @ b.float().mT)


def test_tf32_drops_thirteen_bits(product):
    a, b = torch.zeros(16, 8), torch.zeros(16, 8)
    a[:, 0], b[:, 0] = 1 + 2**-10 + 2**-11, 1.0
    assert torch.equal(product(a, b), torch.full((16, 16), 1 + 2**-10))
