"""A study's folder: its records, its base weights, and what of them counts after a kill.

A stage (the pretraining, one method with one seed, or that at another learning rate of the sweep) opens with a
``start`` record and closes with ``done``. Stages that never reached ``done`` are run again, and the newer ``start``
supersedes whatever the earlier try left behind.
"""

from __future__ import annotations

import json
from pathlib import Path

from artent.records import RecordWriter, read_records

__all__ = ["BASE", "Store", "current_records"]

BASE = "base"  # the method name under which pretraining, the base and the untrained model are recorded


def stage_of(record):
    """(method, seed), for a sweep (method, seed, factor); None for what belongs to no stage."""
    return tuple(record[key] for key in ("method", "seed", "factor") if key in record) or None


def current_records(records):
    """The records that count: the setups, and for every stage those after its latest ``start``."""
    latest = {stage_of(record): at for at, record in enumerate(records) if record["kind"] == "start"}
    return [r for at, r in enumerate(records) if "method" not in r or at > latest.get(stage_of(r), -1)]


class Store:
    """The folder of one study. Opening it refuses what is not this study's; ``resume`` goes on with what is.

    Raises FileExistsError for a folder in use without ``resume``, ValueError for records of another study.
    """

    def __init__(self, folder, config, resume=False):
        self.folder = Path(folder)
        self.base_weights = self.folder / "base.safetensors"
        self.figures = self.folder / "figures"
        path = self.folder / "results.jsonl"
        if self.folder.exists() and any(self.folder.iterdir()) and not resume:
            raise FileExistsError(
                f"out: {self.folder} is not empty. Give --resume to go on with a study in it, or another --out"
            )
        if resume and self.folder.exists() and any(self.folder.iterdir()) and not path.exists():
            raise FileExistsError(f"out: {self.folder} holds files but no study to resume; choose another --out")
        earlier = read_records(path) if path.exists() else []
        for setup in (r for r in earlier if r["kind"] == "setup"):
            _same_config(self.folder, setup["config"], config.to_dict())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.done = {stage_of(r) for r in current_records(earlier) if r["kind"] == "done"}
        if (BASE, config.base_seed) not in self.done or not self.base_weights.exists():
            self.done = set()  # without the weights they began from, fine-tunings cannot be continued
        self.writer = RecordWriter(path)

    def close(self):
        self.writer.close()


def _same_config(folder, recorded, wanted):
    wanted = json.loads(json.dumps(wanted))  # tuples come back from a file as lists
    changed = sorted(key for key in recorded.keys() | wanted.keys() if recorded.get(key) != wanted.get(key))
    if changed:
        told = ", ".join(f"{key} ({recorded.get(key)} there, {wanted.get(key)} now)" for key in changed)
        raise ValueError(
            f"--resume: {folder} holds a study with another configuration: {told}. "
            "Resume with the options it was begun with, or choose another --out"
        )
