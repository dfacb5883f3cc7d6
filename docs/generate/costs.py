"""The tables of the page on costs, from benchmarks/results/*.json. † marks what other work on the machine disturbed."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def markdown(of):
    return {"overview": overview, "sizes": sizes, "peers": peers, "estimates": estimates, "attention": attention}[of]()


def overview():
    """What people do, what it takes."""
    models, spectral = _read("models"), _read("spectral")
    rows = [
        (f"`artent profile`, {row['case']}", _seconds(row) + _mark(row), f"{_gib(row['MiB_above_import'])}")
        for row in models["commands"]["rows"]
    ]
    rows += [(f"entropies at every bond, {row['case']}", _time(row["ours_s"]), "") for row in _once(_read("profile"))]
    for row in models["estimates"]["rows"]:
        if row["method"] == "hybrid":
            rows.append(
                (f"the same, dense 4096², estimated to 1 %, spectrum {row['case'].split(', ')[1]}", _seconds(row), "")
            )
    rows += [
        (
            f"`artent.attach(every={run['every']})`, {row['method']} of the quick study",
            f"{100 * run['told_share']:.1f} % of the training" + _mark(row),
            "",
        )
        for row in _read("callback")["rows"]
        for run in row["every"]
    ]
    long = spectral["long"]
    rows.append((f"S_ext of one head of {long['tokens']:,} tokens", _time(long["seconds"]), f"{long['MiB']:.0f} MiB"))
    ratio = _read("training")
    rows.append(
        (
            "a training step of a small LLaMA with statistics of every attention row",
            f"{ratio['of_sdpa']:.2f} of the step with sdpa" + _mark(ratio),
            "",
        )
    )
    for rank in (64, 256):
        runs = [row for row in _read("mps")["rows"] if row["rank"] == rank]
        kept = _span([row["memory_of_lora"] for row in runs])
        step = f"{_span([row['of_lora'] for row in runs])} of LoRA's step"
        rows.append((f"a training step with MPS adapters, r = {rank}, χ = 32", step, f"{kept} of LoRA's"))
    return _table(("what", "time", "memory"), rows)


def sizes():
    """Seconds of an exact profile by side and rank, and how they grow."""
    cost = _read("models")["cost"]["rows"][0]
    seconds = {(row["d"], row["r"]): row["s"] for row in cost["seconds"]}
    ranks = [*sorted({r for _, r in seconds if r is not None}), None]
    rows = [(f"{d}²", *(f"{seconds[d, r]:.2g}" for r in ranks)) for d in sorted({d for d, _ in seconds})]
    slopes = cost["slope_in_d"]
    rows.append(("grows as d to the", *(f"{slopes['dense' if r is None else str(r)]:.1f}" for r in ranks)))
    heads = ["shape", *(f"r = {r}" if r else "dense" for r in ranks)]
    return _table(heads, rows) + f"\nSeconds{_mark(cost)}; powers fitted to the larger sides.\n"


def peers():
    names = {"svd_per_bond": "an SVD a bond", "quimb": "quimb", "tenpy": "TeNPy"}
    rows = [
        (row["case"], _time(row["ours_s"]), f"{_time(row['peer_s'])}, {names[row['peer']]}", f"{_two(row['ratio'])}×")
        for row in _read("profile")["rows"]
        if "peer" in row
    ]
    rows += [
        (
            f"rsvd, {row['case']}",
            _time(row["ours_s"]) + _mark(row),
            f"{_time(row['torch_s'])}, `torch.svd_lowrank`",
            f"{_two(row['ratio'])}×",
        )
        for row in _read("rsvd")["rows"]
        if row["threads"] == 2 and row["spectrum"] == "decaying"
    ]
    return _table(("case", "artent", "peer", "artent is faster"), rows)


def estimates():
    """The three ways to a dense profile of 4096², against exact."""
    rows = [
        (
            row["case"].split(", ")[1],
            f"`{row['method']}`",
            _time(row["ours_s"]),
            f"{_two(row['ratio'])}×",
            _percent(row["largest_error"]),
        )
        for row in _read("models")["estimates"]["rows"]
    ]
    return _table(("spectrum", "method", "time", "exact takes", "off by at most, of S"), rows)


def attention():
    """Kernels in units of torch's fused attention on the same shape."""
    found = {}
    for row in _read("attention")["rows"]:
        if not row["peer"].startswith("T×T"):
            dtype = row["case"].split()[-1]
            found.setdefault(row["what"], {}).setdefault(dtype, []).append(row["of_peer"])
    rows = [
        (what.replace(" 1 columns", " 1 column"), _span(at["float32"]), _span(at["bfloat16"]))
        for what, at in found.items()
    ]
    return _table(("", "float32", "bfloat16"), rows)


def _read(name):
    return json.loads((RESULTS / f"cpu-{name}.json").read_text(encoding="utf-8"))


def _once(measured):
    """The rows of different cases, each once."""
    return list({row["case"]: row for row in measured["rows"]}.values())


def _table(heads, rows):
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _seconds(row):
    return _time(row["wall_s"] if "wall_s" in row else row["ours_s"])


def _time(seconds):
    return f"{_two(1000 * seconds)} ms" if seconds < 0.1 else f"{_two(seconds)} s"


def _two(number):
    """To two digits, and no exponent."""
    return f"{float(f'{number:.2g}'):g}"


def _percent(share):
    return f"{_two(100 * share)} %" if share > 1e-5 or not share else "< 0.001 %"


def _gib(memory):
    return f"{memory['VmHWM'] / 1024:.2f} GiB"


def _span(values):
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low}–{high}"


def _mark(row):
    return " †" if row.get("disturbed") else ""
