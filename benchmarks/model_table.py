"""What measuring real models costs: ``artent profile`` on LLaMA's shapes from start to exit, estimates, cost by size.

    OMP_NUM_THREADS=2 python benchmarks/model_table.py [--sections commands,estimates,cost] [--rounds 3] [--folder DIR]
        [--json FILE] [--force] [--tiny]

*commands*: the command as typed, a process of its own each time, on files that llama_files.py writes (which then lie in
the page cache): LoRA r = 16 and a full fine-tuning of Llama-3.2-1B's q and v, LoRA r = 256 of Llama-3.1-8B's. Its cut
entropies are checked against float64 first. Memory is that above a process that has only imported artent, by two
counts: VmHWM, all that was resident at once, pages of the mapped files included, and RssAnon, what could not be
dropped. *estimates*: 4096² to 1 % against exact, in alternation. *cost*: seconds against the side d and the rank r,
with slopes of log t. ``--tiny`` tries the script out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from itertools import product
from math import log
from pathlib import Path
from statistics import median

import artent
import llama_files
import torch
from artent.entanglement import EntanglementProfile
from measure import add_section, alternate, machine, quiet_start, ratio, refusal, seconds, undisturbed

EXACT_LIMIT = 1e-4  # nats from float64
ERROR_LIMIT = 0.01  # of S, where an estimate is asked for
ESTIMATE_TARGET = 5  # times as fast as exact
MEMORY_TARGET = 1536  # MiB
WATCHED_EVERY = 0.003  # seconds between looks at a child's memory
# case: size of the model, LoRA rank (None: full fine-tuning), seconds allowed
COMMANDS = {
    "Llama-3.2-1B, LoRA r = 16 of q and v": ("1b", 16, 3),
    "Llama-3.2-1B, full FT, q and v, exact": ("1b", None, 30),
    "Llama-3.1-8B, LoRA r = 256 of q and v": ("8b", 256, 60),
}


def commands(arguments):
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for case, (size, rank, target) in COMMANDS.items():
            yield command(case, Path(folder), "tiny" if arguments.tiny else size, rank, target, arguments)


def command(case, folder, size, rank, target, arguments):
    """A row: wall time of the command from start to exit, and its memory."""
    folder /= size
    if rank:
        rank = min(rank, llama_files.SIZES[size].hidden // 4)
        given = [llama_files.write_adapter(folder / f"lora-r{rank}", size, rank)]
    else:
        given = [llama_files.write_model(folder / "tuned", size, kind="decaying"), "--base",
                 llama_files.write_model(folder / "base", size), "--method", "exact"]  # fmt: skip
    ours = [sys.executable, "-m", "artent.cli", "profile", *map(str, given)]
    nothing = [sys.executable, "-c", "import artent"]
    found = json.loads(told_by([*ours, "--json"]))
    error = check(found["modules"], folder, size, rank)
    functions = {"command": partial(told_by, ours), "import": partial(told_by, nothing)}
    measurement = partial(alternate, functions, arguments.rounds, once)
    took, disturbed = undisturbed(partial(ticked, measurement), tries=1 if arguments.force else 3)
    if no := refusal(disturbed, case, arguments.force):
        return {"case": case, **no}
    used, idle = memory(ours), memory(nothing)
    above = {key: used[key] - idle[key] for key in used}
    wall = median(took["command"])
    return {
        "case": case, "modules": len(found["modules"]), "wall_s": wall, "import_s": median(took["import"]),
        "measuring_s": found["seconds"], "target_s": target, "met": wall < target,
        "MiB_above_import": above, "MiB_of_import": idle, "memory_met": above["VmHWM"] < MEMORY_TARGET,
        "error_nats": error, "disturbed": disturbed,
    }  # fmt: skip


def told_by(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def once(function):
    return seconds(function, least=0, rest=0.5)


def check(records, folder, size, rank):
    """Nats that the worse of the first two modules' cut entropies is away from float64, of the same numbers."""
    names = [name.removesuffix(".weight") for name in llama_files.shapes(size)]
    profiles = {record["module"]: EntanglementProfile.from_dict(record) for record in records}
    assert sorted(profiles) == sorted(names), "modules are missing"
    worst = 0.0
    for name in names[:2]:
        p = cut_values(name, folder, rank).square()
        worst = max(worst, abs(float(profiles[name].cut_entropy) - float(torch.special.entr(p / p.sum()).sum())))
    assert worst < EXACT_LIMIT, f"S at the cut is {worst} nats off"
    return worst


def cut_values(name, folder, rank):
    """Singular values of ΔW in float64: of the small product between the QR factors of B and A, or of tuned − base."""
    from safetensors import safe_open

    def read(file, key):
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(key).double()

    if not rank:
        tuned, base = (read(folder / kind / "model.safetensors", f"{name}.weight") for kind in ("tuned", "base"))
        return torch.linalg.svdvals(tuned - base)
    file, key = folder / f"lora-r{rank}" / "adapter_model.safetensors", f"base_model.model.{name}.lora_%s.weight"
    R_B, R_A = (torch.linalg.qr(factor).R for factor in (read(file, key % "B"), read(file, key % "A").mT))
    return torch.linalg.svdvals(R_B @ R_A.mT)


def memory(command):
    """MiB: VmHWM of the process, and the largest RssAnon seen in it. Both are what Linux counts.

    VmHWM is the kernel's own and only grows; what it adds in the last moments before the exit is missed, as is a peak
    of RssAnon between two looks. (ru_maxrss would count in the pages of the process that started it.)
    """
    peaks = dict.fromkeys(("VmHWM", "RssAnon"), 0)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        status = Path(f"/proc/{child.pid}/status")
        while child.poll() is None:
            lines = [line.split() for line in status.read_text().splitlines()]
            peaks |= {line[0][:-1]: max(peaks[line[0][:-1]], int(line[1])) for line in lines if line[0][:-1] in peaks}
            time.sleep(WATCHED_EVERY)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return {key: value / 1024 for key, value in peaks.items()}


def estimates(arguments):
    """Rows: estimates of a 4096² update to 1 % of S, against exact; all methods take their turn in a round."""
    side = 256 if arguments.tiny else 4096
    for kind in llama_files.UPDATES:
        update = llama_files.update("update", (side, side), 0, kind)
        exact = artent.entanglement_profile(update, method="exact")
        allowed = ERROR_LIMIT * float(exact.cut_entropy)
        methods = {"hybrid": {"method": "hybrid"}, "auto": {"max_error": allowed},
                   "randomized": {"method": "randomized", "max_error": allowed}}  # fmt: skip
        functions = {name: partial(artent.entanglement_profile, update, **options) for name, options in methods.items()}
        functions["exact"] = partial(artent.entanglement_profile, update, method="exact")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "max_error: ")  # where randomized misses it, the row says so
            found = {name: functions[name]() for name in methods}
            measurement = partial(alternate, functions, arguments.rounds, once)
            took, disturbed = undisturbed(partial(ticked, measurement), tries=1 if arguments.force else 3)
        for method, profile in found.items():
            row = {"case": f"{side}², {kind}", "method": method}
            no = refusal(disturbed, f"{side}², {kind}, {method}", arguments.force)
            yield {**row, **(no or against(profile, exact, took[method], took["exact"])), "disturbed": disturbed}


def against(found, exact, ours, theirs):
    """What an estimate gained and what it was off, relative to exact entropies."""
    error = ((found.entropy - exact.entropy).abs() / exact.entropy).double()
    faster, at_cut = ratio(theirs, ours), error[exact.cut - 1].item()
    return {
        "S_cut": float(exact.cut_entropy), "ours_s": median(ours), "exact_s": median(theirs), "ratio": faster,
        "error_at_cut": at_cut, "stderr_at_cut": (found.stderr / exact.entropy)[exact.cut - 1].item(),
        "largest_error": error.max().item(),
        "bonds_within": (error <= ERROR_LIMIT).double().mean().item(),
        "target": ESTIMATE_TARGET, "met": faster >= ESTIMATE_TARGET and at_cut <= ERROR_LIMIT,
    }  # fmt: skip


def ticked(measurement, tick):
    return measurement(between=tick)


def cost(arguments):
    """One table: seconds of a profile by side and rank, exact dense ones too (r: None), and the slopes of log t."""
    sides = (64, 128, 256) if arguments.tiny else (256, 512, 1024, 2048, 4096)
    ranks = (4, 16) if arguments.tiny else (4, 8, 16, 32, 64, 128, 256)
    cells = {(d, r): gaussian(d, r) for d, r in product(sides, (*ranks, None))}
    functions = {cell: partial(artent.entanglement_profile, update) for cell, update in cells.items()}
    measurement = partial(alternate, functions, arguments.rounds, partial(seconds, least=0.1, rest=0.1))
    took, disturbed = undisturbed(partial(ticked, measurement), tries=1 if arguments.force else 3)
    if no := refusal(disturbed, "cost", arguments.force):
        return no
    t = {cell: median(times) for cell, times in took.items()}
    return {
        "seconds": [{"d": d, "r": r, "s": s} for (d, r), s in t.items()],
        "slope_in_d": {str(r or "dense"): slope({d: t[d, r] for d in sides[-3:]}) for r in (*ranks, None)},
        "slope_in_r": {str(d): slope({r: t[d, r] for r in ranks[-3:]}) for d in sides},
        "fitted_to": {"d": sides[-3:], "r": ranks[-3:]}, "disturbed": disturbed,
    }  # fmt: skip


def gaussian(d, r):
    generator = torch.Generator().manual_seed(d)
    if r is None:
        return torch.randn(d, d, generator=generator)
    return artent.LoRAUpdate(torch.randn(d, r, generator=generator), torch.randn(r, d, generator=generator))


def slope(times):
    """Of log t against log x, by least squares."""
    x, y = ([log(v) for v in values] for values in (times.keys(), times.values()))
    x0, y0 = sum(x) / len(x), sum(y) / len(y)
    return sum((a - x0) * (b - y0) for a, b in zip(x, y)) / sum((a - x0) ** 2 for a in x)


def tell(row):
    if "refused" in row:
        print(row["refused"])
    elif "wall_s" in row:
        above = row["MiB_above_import"]
        print(f"{row['case']}: {row['wall_s']:.2f} s (< {row['target_s']}; import {row['import_s']:.2f}), "
              f"{above['VmHWM']:.0f} MiB above an import (RssAnon {above['RssAnon']:.0f})")  # fmt: skip
    elif "method" in row:
        print(f"{row['case']}, {row['method']}: {row['ratio']:.1f} × (≥ {row['target']}), {row['ours_s']:.2f} s, error "
              f"{row['error_at_cut']:.2%} at the cut, up to {row['largest_error']:.2%}")  # fmt: skip
    else:
        for cell in row["seconds"]:
            print(f"d {cell['d']:5} r {cell['r'] or 'dense':>5}  {cell['s']:.4g} s")
        for key in ("slope_in_d", "slope_in_r"):
            print(f"{key}: " + ", ".join(f"{at}: {value:.2f}" for at, value in row[key].items()))
    sys.stdout.flush()
    return row


SECTIONS = {"commands": commands, "estimates": estimates, "cost": lambda arguments: [cost(arguments)]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", default=",".join(SECTIONS), help="what to measure (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the checkpoints are written and deleted, 0.8 GB (the system's own)")
    parser.add_argument("--json", help="put the sections into this file")
    parser.add_argument("--force", action="store_true", help="report on a busy machine too, marked as such")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script out")
    arguments = parser.parse_args()
    chosen = arguments.sections.split(",")
    if odd := set(chosen) - set(SECTIONS):
        parser.error(f"--sections: {', '.join(sorted(odd))} unknown; expected some of {', '.join(SECTIONS)}")
    quiet_start(arguments.force)
    for name in chosen:
        rows = [tell(row) for row in SECTIONS[name](arguments)]
        if arguments.json:
            facts = {**machine(), "artent": artent.__version__, "tiny": arguments.tiny}
            add_section(arguments.json, facts, name, {"rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    main()
