"""attention_stats on one device beside a fused attention forward of the same shape: the answer first, then the time.

    python benchmarks/attention_device.py --device cuda --out benchmarks/results/GPU.json

One forward equivalent is `scaled_dot_product_attention` on the same query and key, forward only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import add_section, device_facts
from torch.utils.benchmark import Timer

import artent_ext
from artent_ext import reference

SHAPES = {  # B, H, Hk, T, D
    "cpu": [(1, 4, 1, 512, 64), (1, 4, 4, 1024, 64)],
    "cuda": [(4, 32, 8, 2048, 64), (1, 32, 8, 8192, 64), (4, 32, 8, 2048, 128), (1, 32, 8, 8192, 128)],
}
CHECKED = 64  # queries, the last ones


def largest_error(query, key):
    """Largest absolute error of entropy and purity at the last queries, against float64."""
    stats = artent_ext.attention_stats(query, key, is_causal=True, enable_gqa=True)
    first = query.shape[-2] - CHECKED
    truth = reference.attention_stats(query[:, :, first:].double(), key.double(), diagonal=first)
    return max((ours[:, :, first:] - true).abs().max().item() for ours, true in zip(stats[1:], truth[1:], strict=True))


def seconds(function):
    return Timer("function()", globals={"function": function}).blocked_autorange(min_run_time=0.5).median


def measure(shape, dtype, device):
    b, h, hk, t, d = shape
    query = torch.randn(b, h, t, d, device=device, dtype=dtype, requires_grad=True)
    key = torch.randn(b, hk, t, d, device=device, dtype=dtype, requires_grad=True)
    with torch.no_grad():
        error = largest_error(query, key)
    if error > 1e-4:
        raise SystemExit(f"{shape} {dtype}: wrong by {error:.1e}; no time is told for a wrong answer")

    def forward():
        return artent_ext.attention_entropy(query, key, is_causal=True, enable_gqa=True)

    def both():
        torch.autograd.grad(forward().sum(), (query, key))

    def fused():
        with torch.no_grad():
            F.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)

    with torch.no_grad():
        times = {"forward_s": seconds(forward), "sdpa_forward_s": seconds(fused)}
    times["forward_backward_s"] = seconds(both)
    equivalents = {
        f"{k}_equivalents": times[f"{k}_s"] / times["sdpa_forward_s"] for k in ("forward", "forward_backward")
    }
    names = dict(zip(("B", "H", "Hk", "T", "D"), shape, strict=True))
    return {**names, "dtype": str(dtype).removeprefix("torch."), "error": error, **times, **equivalents}


def told(row):
    times = (
        f"{what} {1e3 * row[f'{key}_s']:.2f} ms ({row[f'{key}_equivalents']:.1f} forward equivalents)"
        for what, key in (("forward", "forward"), ("with backward", "forward_backward"))
    )
    shape = "B{B} H{H}/{Hk} T{T} D{D} {dtype}".format(**row)
    return f"{shape}: error {row['error']:.1e}, {', '.join(times)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=SHAPES, default="cpu")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: printed only)")
    arguments = parser.parse_args()
    device = arguments.device
    torch.manual_seed(0)
    rows = []
    for shape in SHAPES[device]:
        for dtype in (torch.bfloat16, torch.float32):
            row = measure(shape, dtype, device)
            rows.append(row)
            print(told(row), flush=True)
    if arguments.out:
        add_section(arguments.out, device_facts(device), "attention_stats", rows)


if __name__ == "__main__":
    main()
