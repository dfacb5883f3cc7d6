"""Randomized SVD on one device beside ``torch.svd_lowrank`` and beside what the device cannot go below.

    python benchmarks/rsvd_device.py --device cuda --out benchmarks/results/GPU.json

Equal accuracy is checked before anything is timed. What a large case cannot go below is the time of its products alone,
in the fastest layout; a small one, one read of A or the products' operations at the rate of a large float32 product,
both measured here. Latency is a single call on an idle device until its results are there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from time import perf_counter
from typing import NamedTuple

import torch
from bench_rsvd import CASES, SPECTRA, check, matrices, ours, torch_lowrank
from measure import add_section, alternate, cuda_seconds, device_facts, ratio, seconds
from rsvd_floor import fastest_products
from rsvd_table import quick

ROUNDS = 5
TARGET = 10  # geometric mean of the times as fast as torch.svd_lowrank
FLOOR_TARGETS = {"products": 1.5, "read or flops": 3}  # times the floor


class Device(NamedTuple):
    """How a device is timed; ``side`` of the products and reads that measure its rates."""

    cases: list
    seconds: Callable
    synchronise: Callable
    side: int


DEVICES = {
    "cpu": Device([quick(case) for case in CASES], partial(seconds, least=0.02, rest=0), lambda: None, 1024),
    "cuda": Device(CASES, cuda_seconds, torch.cuda.synchronize, 16384),
}


def rates(device):
    """Bytes read and float32 operations in a second, measured on large operands."""
    side, timed = DEVICES[device].side, DEVICES[device].seconds
    A = torch.randn(side, side, device=device)
    out = torch.empty_like(A)
    return {"bytes": 4 * A.numel() / timed(A.sum), "flops": 2 * side**3 / timed(lambda: torch.mm(A, A, out=out))}


def latency(function, synchronise, calls=20):
    took = []
    for _ in range(calls):
        synchronise()
        start = perf_counter()
        function()
        synchronise()
        took.append(perf_counter() - start)
    return median(took)


def measure(case, device, rate):
    timing = DEVICES[device]
    errors = {spectrum: check(ours, *matrices(case, spectrum, device), case.q) for spectrum in SPECTRA}
    A, _ = matrices(case, "decaying", device)
    products, layouts = fastest_products(A, case.q, timing.seconds)
    functions = {"ours": partial(ours, A, case.q), "torch": partial(torch_lowrank, A, case.q), "products": products}
    took = alternate(functions, ROUNDS, timing.seconds)
    times = {f"{who}_s": median(values) for who, values in took.items()}
    if case.large:
        kind, floor = "products", times["products_s"]
    else:
        kind, floor = "read or flops", max(4 * A.numel() / rate["bytes"], case.flops / rate["flops"])
    return {
        "case": str(case), "errors": errors, **times, "ratio": ratio(took["torch"], took["ours"]),
        "layouts": layouts, "floor": kind, "floor_s": floor, "over_floor": times["ours_s"] / floor,
        "floor_target": FLOOR_TARGETS[kind],
        "latency_s": latency(functions["ours"], timing.synchronise),
        "torch_latency_s": latency(functions["torch"], timing.synchronise, calls=3),
    }  # fmt: skip


def told(row):
    milliseconds = {key: f"{1e3 * value:.3g} ms" for key, value in row.items() if key.endswith("_s")}
    return (
        "{case}: {ours_s}, torch {torch_s}: {ratio:.1f}×; {over_floor:.2f} times {floor} ({floor_s}, target ≤"
        " {floor_target}); latency {latency_s}, torch {torch_latency_s}"
    ).format(**{**row, **milliseconds})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="cpu: small cases, to try the script out")
    parser.add_argument("--out", type=Path, help="the JSON file that gets a section rsvd (default: printed only)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rate = rates(arguments.device)
    print("{:.0f} GB/s read, {:.1f} TFLOP/s float32".format(rate["bytes"] / 1e9, rate["flops"] / 1e12), flush=True)
    rows = []
    for case in DEVICES[arguments.device].cases:
        rows.append(measure(case, arguments.device, rate))
        print(told(rows[-1]), flush=True)
    mean = geometric_mean(row["ratio"] for row in rows)
    print(f"geometric mean {mean:.1f}× torch.svd_lowrank (target ≥ {TARGET}×)")
    if arguments.out:
        section = {"rates": rate, "geometric_mean": mean, "target": TARGET, "rows": rows}
        add_section(arguments.out, device_facts(arguments.device), "rsvd", section)


if __name__ == "__main__":
    main()
