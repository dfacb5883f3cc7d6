"""The simulated machine catches what it promises to catch (README.md), whatever the schedule, and nothing else."""

from __future__ import annotations

import ctypes

import pytest
import torch
from simt_driver import OUTPUT, SCRATCH

SEEDS = range(5)

FAULTS = {
    "missing barrier": "race|uninitialised",
    "missing barrier in a warp": "race|uninitialised",
    "warp barrier across warps": "race|uninitialised",
    "shuffle as a barrier": "race|uninitialised",
    "overwritten before read": "race: (read and written|written and read)",
    "two writers": "race: written twice",
    "uninitialised": "thread 5 of block 0 reads uninitialised shared memory, byte 20",
    "returned before the barrier": "divergent barrier.*thread 7 has returned",
    "two barriers": "divergent barrier.*thread 0 waits.*thread 32 waits",
    "lane left out": "divergent barrier.*(thread 9|thread 41) has returned",
    "reads a lane outside the mask": "reads lane 20, which takes no part",
    "reads past the end": "reads out of bounds: in \\+ 256",
    "writes past the end": "writes out of bounds:.*out \\+ 256",
    "reads before the start": "reads out of bounds: in − 4",
    "writes its input": "writes its input in",
    "reads its output": "reads its output out",
    "two owners": "two threads write out",
    "scratch without a barrier": "race on out: |uninitialised scratch out",
    "scratch read before it is written": "thread 9 of block 0 reads uninitialised scratch out, byte 36",
    "scratch of another block": "race on out: written twice",
    "past the scratch span": "out of bounds of a global span of 63: element 63",
    "past the span": "out of bounds of a shared span of 63: element 63",
    "misaligned vector of a span": "misaligned vector: element .* of a shared span",
    "laid over what is in use": "race: (read and written|written and read)",
    "misaligned global": "misaligned access of in",
    "misaligned vector": "misaligned vector",
    "past the tile": "out of bounds of a shared tile of 1×64: row 0, column 64",
    "more shared memory than launched": "takes 512 bytes of shared memory, the launch gives 256",
}


@pytest.fixture
def run(planted):
    function = planted.function("planted", ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)

    def run(name, seed):
        planted.clear()
        given, out = torch.arange(64.0), torch.full((64,), float("nan"))
        given_at = planted.buffer("in", given)
        out_at = planted.buffer("out", out, SCRATCH if "scratch" in name else OUTPUT)
        planted.check(function(name.encode(), given_at, out_at, seed))
        return out

    return run


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(run, name):
    for seed in SEEDS:
        with pytest.raises(RuntimeError, match=FAULTS[name]):
            run(name, seed)


def lanes():
    lane = torch.arange(64) % 32
    return torch.arange(64), lane, torch.arange(64) - lane


def test_sound_kernels_pass(run):
    thread, lane, warp = lanes()
    up, swapped, down = warp + (lane + 1) % 32, warp + (lane ^ 16), warp + (lane + 1).clamp(max=31)
    shuffled = up + 100 * swapped + 10000 * down + 1000000 * torch.where(lane < 16, warp + 3, 0)
    expected = {
        "sound": (thread + 1) % 64,
        "sound in a warp": up,
        "sound shuffles": shuffled.float(),
        "any": torch.ones(64),
        "sound scratch": (thread + 1) % 64,
    }
    for name, values in expected.items():
        for seed in SEEDS:
            assert torch.equal(run(name, seed), values.float())
