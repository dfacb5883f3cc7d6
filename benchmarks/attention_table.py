"""Attention's ops against fused attention, in one run of alternating calls; causal, answers checked first.

    OMP_NUM_THREADS=2 python benchmarks/attention_table.py [--rounds 7] [--only 4096] [--json FILE] [--force] [--quick]

Row statistics are compared with the best that fused attention can do for a row entropy, value := key and the identity
of docs/math.md §4, of which the forward alone is timed; attention with statistics with attention without; a product of
c columns with (D + c)/2D of a forward, its share of the operations. A row that other work disturbed is tried again,
then refused, and the exit status says so; ``--force`` reports it all the same, marked; ``--quick`` tries it out.
"""

import argparse
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from bench_attention import SHAPES, artent, check, fused_identity, inputs, materialised
from measure import alternate, machine, quiet_start, ratio, refusal, seconds, undisturbed, write

import artent_ext
from artent_ext import reference

STATS_TARGET = {torch.float32: 0.5, torch.bfloat16: 0.7}
WITH_STATS_TARGET = 1.15
COLUMNS = (1, 32, 64, 256)
CHECKED = 16  # rows held against float64
HEAD = "\n| case | what | ours | peer | its time | ours / its | target |\n|---|---|--:|---|--:|--:|--:|"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="the shapes whose name holds this, e.g. 4096")
    parser.add_argument("--json", help="write the rows here too")
    parser.add_argument("--force", action="store_true", help="report on a busy machine too, marked as such")
    parser.add_argument("--quick", action="store_true", help="an eighth of the tokens, one round")
    arguments = parser.parse_args()
    force = arguments.force or arguments.quick
    quiet_start(force)
    setup = {**machine(), "isa": artent_ext.build_info()["isa"], "rounds": 1 if arguments.quick else arguments.rounds}
    rows, refused = [], []
    print(HEAD, flush=True)
    for shape in SHAPES:
        if arguments.only not in str(shape):
            continue
        if arguments.quick:
            shape = (*shape[:2], shape[2] // 8, shape[3])
        for dtype in STATS_TARGET:
            for row in compared(shape, dtype, setup["rounds"], force):
                (refused if "refused" in row else rows).append(row)
                print(row.get("refused") or told(row), flush=True)
                if row.get("disturbed"):
                    setup["disturbed"] = "other work ran beside some of these measurements: not to be quoted"
                if arguments.json:  # after every row: minutes of measurements must not be lost to the last
                    write(arguments.json, {**setup, "rows": rows, "refused": refused})
    if refused:
        raise SystemExit(1)


def compared(shape, dtype, rounds, force):
    """The rows of one shape and dtype. Our functions and a fused forward take their turns in every round."""
    query, key, value = inputs(shape, dtype)
    check(artent(query, key), query, key)
    check_products(query, key)
    D = shape[-1]
    lse = artent_ext.attention_stats(query, key, is_causal=True).lse
    ours = {"row statistics": partial(artent_ext.attention_stats, query, key, is_causal=True),
            "attention with statistics": partial(with_stats, query, key, value),
            "the same with its gradient": partial(gradients, with_stats, query, key, value)}  # fmt: skip
    for c in COLUMNS:
        x = torch.randn(*shape[:3], c, generator=torch.Generator().manual_seed(c))
        for transpose in (False, True):
            name = f"{'Aᵀ' if transpose else 'A'}·x, {c} columns"
            ours[name] = partial(applied, query, key, x, lse, transpose)
    peers = {"fused": partial(fused_identity, query, key), "fused attention": partial(fused, query, key, value),
             "fused attention with its gradient": partial(gradients, fused, query, key, value)}  # fmt: skip
    measured = partial(alternate, {**ours, **peers}, rounds, burst)
    took, disturbed = undisturbed(measured, tries=3 if force else 10)
    case = f"{shape} {str(dtype).removeprefix('torch.')}"
    if no := refusal(disturbed, case, force):
        yield no
        return
    for name in ours:
        peer, target = "fused attention", None
        if name == "row statistics":
            peer, target = "fused", STATS_TARGET[dtype]
        elif name == "attention with statistics":
            target = WITH_STATS_TARGET
        elif name == "the same with its gradient":
            peer = "fused attention with its gradient"
        else:
            target = (D + int(name.split()[1])) / (2 * D)
        yield row(case, name, took[name], peer, took[peer], target, disturbed)
    yield against_materialised(case, query, key, took["row statistics"], disturbed)


def row(case, name, mine, peer, theirs, target, disturbed):
    of_peer = 1 / ratio(theirs, mine)
    judged = {} if target is None else {"target": target, "met": of_peer <= target}
    return {"case": case, "what": name, "ours_s": median(mine), "peer": peer, "peer_s": median(theirs),
            "of_peer": of_peer, **judged, "disturbed": disturbed}  # fmt: skip


def against_materialised(case, query, key, mine, disturbed):
    query, key = query.float(), key.float()
    took = [seconds(partial(materialised, query, key), least=0)]
    return {"case": case, "what": "row statistics", "ours_s": median(mine), "peer": "T×T materialised, head by head",
            "peer_s": took[0], "of_peer": median(mine) / took[0], "target": 0.1,
            "met": median(mine) <= 0.1 * took[0], "disturbed": disturbed}  # fmt: skip


def burst(function):
    """A call takes tenths of a second here: one is enough for a round."""
    return seconds(function, least=0, rest=0.1)


def with_stats(query, key, value):
    return artent_ext.scaled_dot_product_attention_with_stats(query, key, value, is_causal=True)[0]


def fused(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def applied(query, key, x, lse, transpose):
    return artent_ext.attention_apply(query, key, x, lse=lse, transpose=transpose, is_causal=True)


def gradients(attention, *tensors):
    tensors = [x.detach().requires_grad_() for x in tensors]
    return torch.autograd.grad(attention(*tensors).sum(), tensors)


def check_products(query, key):
    """A·x at the last queries and Aᵀ·x at the last keys against float64, on one head."""
    query, key = (x[:1, :1] for x in (query, key))
    T = query.shape[-2]
    x = torch.randn(1, 1, T, 3, generator=torch.Generator().manual_seed(0))
    rows = reference.attention_probabilities(query[:, :, -CHECKED:].double(), key.double(), diagonal=T - CHECKED)
    lse = artent_ext.attention_stats(query, key, is_causal=True).lse
    expected = rows @ x.double(), rows[..., -CHECKED:].mT @ x[:, :, -CHECKED:].double()
    for transpose, truth in zip((False, True), expected, strict=True):
        out = applied(query, key, x, lse, transpose)[:, :, -CHECKED:]
        torch.testing.assert_close(out.double(), truth, rtol=1e-4, atol=1e-4)


def told(row):
    target = f"≤ {row['target']:.2f}" if "target" in row else ""
    ours_ms, peer_ms = (f"{1e3 * row[key]:.4g} ms" for key in ("ours_s", "peer_s"))
    cells = row["case"], row["what"], ours_ms, row["peer"], peer_ms, f"{row['of_peer']:.2f}", target
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
