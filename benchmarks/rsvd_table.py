"""Randomized SVD against ``torch.svd_lowrank`` and against its own products alone, in one run of alternating calls.

    OMP_NUM_THREADS=2 python benchmarks/rsvd_table.py [--rounds 7] [--only 4096] [--json FILE] [--force] [--quick]

Equal accuracy is checked before anything is timed. A row that other work disturbed is tried again, then refused, and
the exit status says so; ``--force`` reports it all the same, marked. ``--quick`` tries the script out on small
matrices.
"""

import argparse
from functools import partial
from itertools import product
from statistics import median

import torch
from bench_rsvd import CASES, SPECTRA, check, matrices, ours, peers, torch_lowrank
from measure import alternate, machine, quiet_start, ratio, refusal, seconds, undisturbed, write
from rsvd_floor import fastest_products

import artent_ext

FLOOR_TARGET = 1.3  # times the products alone, where products are what there is to do

HEAD = """
| case | spectrum | threads | ours | torch | ratio | target | products alone | ours over it | target | GFLOP/s | error |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"""
PEER_HEAD = "\n| case | peer | its time | ours | ratio | error |\n|---|---|--:|--:|--:|--:|"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="the cases whose name holds this, e.g. 4096")
    parser.add_argument("--json", help="write the rows here too")
    parser.add_argument("--force", action="store_true", help="report on a busy machine too, marked as such")
    parser.add_argument("--quick", action="store_true", help="sides a quarter, batches an eighth, one round")
    arguments = parser.parse_args()
    cases = [case for case in CASES if arguments.only in str(case)]
    cases = [quick(case) for case in cases] if arguments.quick else cases
    rounds = 1 if arguments.quick else arguments.rounds
    arguments.force |= arguments.quick
    quiet_start(arguments.force)

    setup = {**machine(), "isa": artent_ext.build_info()["isa"], "rounds": rounds}
    if arguments.quick:
        setup["quick"] = "small matrices, one round: not to be quoted"
    tables = {"rows": [], "peers": [], "refused": []}
    for name, head, rows, told_as in (
        ("rows", HEAD, table(cases, rounds, arguments.force), told),
        ("peers", PEER_HEAD, peer_table(cases, min(rounds, 3), arguments.force), peer_told),
    ):
        print(head, flush=True)
        for row in rows:
            tables["refused" if "refused" in row else name].append(row)
            print(row["refused"] if "refused" in row else told_as(row), flush=True)
            if row.get("disturbed"):
                setup["disturbed"] = "other work ran beside some of these measurements: not to be quoted"
            if arguments.json:  # after every row: minutes of measurements must not be lost to the last
                write(arguments.json, {**setup, **tables})
    if tables["refused"]:
        raise SystemExit(1)


def quick(case):
    return case._replace(batch=-(-case.batch // 8), m=case.m // 4, n=case.n // 4, target=None)


def table(cases, rounds, force):
    threads = torch.get_num_threads()
    for case in cases:
        given = {spectrum: matrices(case, spectrum) for spectrum in SPECTRA}
        errors = {spectrum: check(ours, *given[spectrum], case.q) for spectrum in SPECTRA}
        for count in sorted({threads, 1}, reverse=True):
            torch.set_num_threads(count)
            (took, layouts), disturbed = undisturbed(partial(timed, case, given, rounds))
            torch.set_num_threads(threads)
            if no := refusal(disturbed, f"{case}, {count} thread(s)", force):
                yield no
                continue
            judged = case.target is not None and count == threads
            for spectrum in SPECTRA:
                times = took[ours, spectrum], took[torch_lowrank, spectrum], took["products"]
                row = {"case": str(case), "spectrum": spectrum, "threads": count, **compared(case, *times, judged)}
                error, torchs = errors[spectrum]
                yield {**row, "layouts": layouts, "error": error, "torch_error": torchs, "disturbed": disturbed}


def timed(case, given, rounds, tick):
    """{(who, spectrum) or "products": seconds of each round}, and the layouts of the products."""
    products, layouts = fastest_products(given["decaying"][0], case.q, quick_seconds)
    functions = {
        (peer, spectrum): partial(peer, given[spectrum][0], case.q)
        for spectrum, peer in product(SPECTRA, (ours, torch_lowrank))
    }
    return alternate({**functions, "products": products}, rounds, between=tick), layouts


def quick_seconds(function):
    """Enough to choose the fastest: the best of five bursts."""
    function()
    return min(seconds(function, least=0.005, rest=0) for _ in range(5))


def compared(case, mine, theirs, products, judged):
    faster, above = ratio(theirs, mine), ratio(mine, products)
    row = {"ours_s": median(mine), "torch_s": median(theirs), "ratio": faster}
    if judged:
        row |= {"target": case.target, "met": faster >= case.target}
    row |= {"products_s": median(products), "over_products": above}
    if judged and case.large:
        row |= {"products_target": FLOOR_TARGET, "products_met": above <= FLOOR_TARGET}
    return {**row, "products_gflops": case.flops / median(products) / 1e9}


def told(row):
    ours_ms, torch_ms, products_ms = (f"{1e3 * row[key]:.3g} ms" for key in ("ours_s", "torch_s", "products_s"))
    target = f"≥ {row['target']}×" if "target" in row else ""
    products_target = f"≤ {row['products_target']}×" if "products_target" in row else ""
    cells = [
        row["case"], row["spectrum"], row["threads"], ours_ms, torch_ms, f"{row['ratio']:.2f}×", target,
        f"{products_ms} ({row['layouts']})", f"{row['over_products']:.2f}×", products_target,
        f"{row['products_gflops']:.0f}", f"{row['error']:.3f}, torch {row['torch_error']:.3f}",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def peer_table(cases, rounds, force):
    """Other peers, where they end within seconds, on the decaying spectrum."""
    for case in cases:
        A, sigma = matrices(case, "decaying")
        for peer in peers(case):
            if peer is torch_lowrank:
                continue
            error, _ = check(peer, A, sigma, case.q)
            functions = {"ours": partial(ours, A, case.q), "peer": partial(peer, A, case.q)}
            took, disturbed = undisturbed(partial(alternate, functions, rounds, seconds))
            if no := refusal(disturbed, f"{case}, {peer.__name__}", force):
                yield no
                continue
            yield {"case": str(case), "peer": peer.__name__, "peer_s": median(took["peer"]),
                   "ours_s": median(took["ours"]), "ratio": ratio(took["peer"], took["ours"]), "error": error,
                   "disturbed": disturbed}  # fmt: skip


def peer_told(row):
    peer_ms, ours_ms = (f"{1e3 * row[key]:.3g} ms" for key in ("peer_s", "ours_s"))
    return f"| {row['case']} | {row['peer']} | {peer_ms} | {ours_ms} | {row['ratio']:.1f}× | {row['error']:.3f} |"


if __name__ == "__main__":
    main()
