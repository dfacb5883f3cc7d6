"""The numbers of the page on reading profiles, from the updates that its figures show."""

import importlib.util
from pathlib import Path

import artent
from artent.theory import gaussian_null

SOURCE = Path(__file__).parents[1] / "figures" / "examples.py"
NAMES = {
    "random_full": "Random, full rank",
    "random_lora": "Random LoRA",
    "few_rows": "Structured",
    "unused_rank": "Rank that is not used",
    "diverged": "Diverged",
}


def numbers():
    """{name of the update: what the page says of it}."""
    spec = importlib.util.spec_from_file_location("examples", SOURCE)
    examples = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(examples)
    found = {}
    for name in NAMES:
        update = getattr(examples, name)()
        profile, null = artent.entanglement_profile(update), gaussian_null(update).mean
        found[name] = {
            "used": f"{profile.effective_rank:.1f} of {profile.rank or min(profile.shape)}",
            "cut": f"{profile.cut_entropy:.2f}",
            "valley": f"{profile.valley_depth:.2f}",
            "null": f"{max(null) - null[profile.cut - 1]:.2f}",
        }
    return found


def markdown():
    lines = ["| | effective rank | S at the cut | valley | valley of the random null |", "|---|--:|--:|--:|--:|"]
    lines += [f"| {NAMES[name]} | {' | '.join(row.values())} |" for name, row in numbers().items()]
    return "\n".join(lines)
