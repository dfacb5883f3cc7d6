"""Ratios of profile times from one run: ours and a peer alternate, each answer is checked first, medians are compared.

    OMP_NUM_THREADS=2 python benchmarks/profile_table.py [--rounds 5] [--scale 1] [--json FILE]

The variable holds for torch and for the BLAS of numpy alike. ``--scale 4`` divides every side by four, to try the
script out; the targets are for scale 1.
"""

import argparse
from functools import partial
from statistics import median

from bench_profile import check, exact, gaussian, ours, quimb, svd_per_bond, tenpy
from measure import alternate, machine, write


def rows(scale, rounds):
    side = 2048 // scale
    lora, full, half = gaussian(side, side, 8), gaussian(side, side), gaussian(side // 2, side // 2)
    for name, update, peer, target in (
        (f"LoRA {side}², r = 8", lora, svd_per_bond, 500),
        (f"dense {side}²", full, svd_per_bond, 6),
        (f"dense {side // 2}²", half, quimb, 50),
        (f"dense {side // 2}²", half, tenpy, 6),
    ):
        yield paired(name, update, peer, target, rounds)
    shapes = [(side, side)] * 16 + [(side // 4, side)] * 16
    modules = [gaussian(m, n, 16, seed) for seed, (m, n) in enumerate(shapes)]
    for update in (modules[0], modules[-1]):
        check(ours, update)
    took = alternate({"ours": partial(ours, modules)}, rounds)["ours"]
    yield {"case": f"32 LoRA modules, q {side}², v {side // 4}×{side}, r = 16, one call", "ours_s": median(took),
           "target": "< 1 s", "met": median(took) < 1}  # fmt: skip


def paired(name, update, peer, target, rounds):
    expected = exact(update)
    check(ours, update, expected)
    check(peer, update, expected)
    took = alternate({"ours": partial(ours, update), "peer": partial(peer, update)}, rounds)
    ours_s, peer_s = median(took["ours"]), median(took["peer"])
    ratio = peer_s / ours_s
    return {"case": name, "ours_s": ours_s, "peer": peer.__name__, "peer_s": peer_s,
            "ratio": ratio, "target": f"≥ {target}×", "met": ratio >= target}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=int, default=1, choices=(1, 2, 4, 8, 16))
    parser.add_argument("--json", help="write the rows here too")
    arguments = parser.parse_args()
    print("| case | ours | peer | peer's time | ratio | target |\n|---|--:|---|--:|--:|---|", flush=True)
    results = []
    for row in rows(arguments.scale, arguments.rounds):
        results.append(row)
        peer = f"{row['peer']} | {row['peer_s']:.3g} s | {row['ratio']:.3g}×" if "peer" in row else " | |"
        print(f"| {row['case']} | {row['ours_s']:.3g} s | {peer} | {row['target']} |", flush=True)
    if arguments.json:
        write(arguments.json, {**machine(), "rounds": arguments.rounds, "rows": results})


if __name__ == "__main__":
    main()
