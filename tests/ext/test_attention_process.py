"""Instruction sets, threads and memory: the same answers on all, from O(T) bytes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention_samples import ours

FOLDER = str(Path(__file__).parent)

_OTHER_ISA = """
import sys
sys.path.append(sys.argv[2])
import torch, artent_ext
from attention_samples import KINDS, OPS, SAMPLES
from test_attention_accuracy import test_gradients, test_values
assert artent_ext.build_info()["isa"] == sys.argv[1], artent_ext.build_info()
shapes = ("larger than a tile", "odd head dimension", "head dimension 80", "wide head", "key ranges beyond the keys")
for number, sample in enumerate((*KINDS, *(s for s in SAMPLES if s.name in shapes))):
    for op in OPS:
        for dtype in [(torch.float64, torch.bfloat16), (torch.float32, torch.float16)][number % 2]:
            try:
                test_values(sample, op, dtype)
                test_gradients(sample, op, dtype)
            except AssertionError as error:
                raise AssertionError(f"{sample.name}, {op}, {dtype}") from error
"""


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_other_instruction_sets_give_as_good_answers(isa):
    """By the yardstick of test_attention_accuracy."""
    environment = {**os.environ, "ARTENT_ISA": isa}
    probe = "import artent_ext; print(artent_ext.build_info()['isa'])"
    chosen = subprocess.run([sys.executable, "-c", probe], check=True, env=environment, capture_output=True, text=True)
    if chosen.stdout.strip() != isa:
        pytest.skip(f"this machine has no {isa}")
    subprocess.run([sys.executable, "-c", _OTHER_ISA, isa, FOLDER], check=True, env=environment)


def test_same_bits_for_any_number_of_threads(op, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = {"query": (2, 4, 200, 32), "key": (2, 2, 700, 32), "value": (2, 2, 700, 20), "x": (2, 4, 700, 20)}
    shapes["y"] = (2, 4, 200, 20)
    names = {"stats": [], "forward": ["value"], "apply": ["x"], "transposed": ["y"]}[op]
    inputs = [torch.randn(shapes[name], generator=generator).to(dtype) for name in ("query", "key", *names)]
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [x.clone().requires_grad_() for x in inputs]
            values = ours(op, leaves, {"enable_gqa": True, "window": (300, 400)})
            sum(x.sum() for x in values).backward()
            results.append([*values, *(x.grad for x in leaves)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


_PEAK = """
import resource, sys
sys.path.append(sys.argv[1])
import torch
from attention_samples import OPS, ours

def run(op, length):
    inputs = [torch.randn(1, 1, length, 8, requires_grad=True) for _ in range(2 if op == "stats" else 3)]
    texts = torch.tensor([0, length - 10, length])
    values = ours(op, inputs, {"is_causal": True, "cu_seqlens_q": texts})
    sum(x.sum() for x in values).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = [run(op, 64) for op in OPS][-1]
print(*(run(op, 16384) - before for op in OPS))
"""


def test_memory_is_linear_in_the_context():
    """T = 16384 forward and backward: T×T floats would be 1 GiB; inputs, gradients and tiles are a few MiB."""
    grown = subprocess.run([sys.executable, "-c", _PEAK, FOLDER], check=True, capture_output=True, text=True).stdout
    assert max(int(kib) for kib in grown.split()) < 32 * 1024
