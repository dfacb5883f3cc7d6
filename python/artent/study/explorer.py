"""The data of the page's explorer: every module's profiles by method and step, and what they are judged by."""

from __future__ import annotations

from statistics import fmean

from artent.study.figures import colour, module_label

__all__ = ["profile_explorer"]

DRAWN = {"full-ft": "random matrices", "lora": "random factors", "mps": "random cores"}  # of the Gaussian null


def profile_explorer(s):
    """What the page's explorer needs: for every module and method, profiles over steps and their nulls."""
    first = s.runs[0]
    steps = sorted({step for run in s.runs for module in s.profiles[run].values() for step in module})
    chosen = {}
    for module in sorted(s.profiles[first]):
        methods = {m.name: _explored(s, m, module, steps) for m in s.methods}
        chosen[module_label(module)] = {"cut": s.last(first, module).cut, "methods": methods}
    return {
        "methods": [{"key": m.name, "label": m.label, "color": colour(s, m.name)} for m in s.methods],
        "steps": steps,
        "profiles": chosen,
    }


def _explored(s, m, module, steps):
    seeds = s.seeds(m.name)
    last, null = s.last((m.name, seeds[0]), module), s.nulls[(m.name, seeds[0])][module]
    seen = []
    for step in steps:
        at = [s.profiles[(m.name, seed)][module].get(step) for seed in seeds]
        seen.append(
            {
                "entropy": [p.entropy.tolist() for p in at],
                "effective": fmean(float(p.effective_rank) for p in at),
                "depth": fmean(float(p.valley_depth) for p in at),
                **({"haar": null["haar"]} if step == steps[-1] else {}),
            }
            if None not in at
            else None
        )
    gaussian, spread = null["gaussian"], null["gaussian_spread"]
    return {
        "seeds": seeds,
        "rank": last.rank or min(last.shape),
        "steps": seen,
        "nulls": {
            "bound": null["bound"],
            "line": null["line"],
            "line_name": "Page's line" if last.rank is None else "LoRA line",
            "gaussian": gaussian,
            "drawn": DRAWN[m.kind],
            "gaussian_band": [[g - 2 * d, g + 2 * d] for g, d in zip(gaussian, spread)],
            "depth": max(gaussian) - gaussian[last.cut - 1],
        },
    }
