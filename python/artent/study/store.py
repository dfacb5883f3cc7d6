"""A study's folder: its records, its base weights, its adapters, and what of them counts after a kill.

A stage (the pretraining, one method with one seed, a control, one run of the sweep) opens with a ``start`` record and
closes with ``done``. One that never reached ``done`` goes on from its last checkpoint, where it kept one, with a
``resumed`` record that voids what was recorded after that step; else it is run again, and the newer ``start``
supersedes whatever the earlier try left behind.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

from artent.records import RecordWriter, read_records
from artent.study.config import as_config
from artent.training.base import together

__all__ = ["BASE", "Store", "current_records", "stage_of"]

BASE = "base"  # the method name under which pretraining, the base and the untrained model are recorded
# What may differ when a study goes on: where and how safely it runs, and how its numbers are judged.
_FREE = ("training.device", "training.parallel", "training.save_every", "judge", "sweep", "controls")


def stage_of(record):
    """(method, seed), for a run of the sweep (method, seed, setting); None for what belongs to no stage."""
    return tuple(record[key] for key in ("method", "seed", "setting") if key in record) or None


def current_records(records):
    """The records that count: the setups, and for every stage those since its latest ``start``.

    Of a stage that was resumed, what was measured after the checkpoint's step does not; and of what was measured twice
    at a step, the later.
    """
    latest = {stage_of(record): at for at, record in enumerate(records) if record["kind"] == "start"}
    counting = {}
    for at, record in enumerate(records):
        stage = stage_of(record) if "method" in record else None
        if stage is not None and at <= latest.get(stage, -1):
            continue
        if record["kind"] == "resumed":
            for key in [k for k in counting if k[0] == stage and not _survives(counting[k], record["step"])]:
                del counting[key]
        measured = tuple(str(record.get(key)) for key in ("kind", "step", "module", "text"))
        once = (stage, *measured) if stage is not None and "step" in record else (stage, at)
        counting.pop(once, None)
        counting[once] = record
    return list(counting.values())


def _survives(record, step):
    """What was measured up to the step; the rest of an interrupted stage is recorded anew."""
    return record.get("step", step + 1) <= step


class Store:
    """The folder of one study. Opening it refuses what is not this study's; ``resume`` goes on with what is.

    A study that goes on may have more seeds, methods, sweeps and controls than before. With several processes the first
    one has the folder, and all know what is done.

    Raises FileExistsError for a folder in use without ``resume``, ValueError for records of another study.

    Attributes:
        done: the stages that are.
        reached: ``{stage: step}`` of the last checkpoint of stages that are not.
        diverged: the stages that are done and ended in NaN.
    """

    def __init__(self, folder, config, resume, processes):
        self.folder, self.processes, self.writer = Path(folder), processes, None
        self.base_weights = self.folder / "base.safetensors"
        self.config, known = config, None
        with together(processes):
            if processes.main:
                known = self._open(resume)
        self.done, self.reached, self.diverged = processes.broadcast(known)

    def _open(self, resume):
        path = self.folder / "results.jsonl"
        check_folder(self.folder, resume)
        earlier = read_records(path) if path.exists() else []
        for setup in (r for r in earlier if r["kind"] == "setup"):
            _same_config(self.folder, setup["config"], self.config)
            if (began := setup.get("processes", 1)) != self.processes.size:
                raise ValueError(
                    f"--resume: {self.folder} was begun on {began} processes and this is {self.processes.size}: a step "
                    "would take other texts, and seeds could not be compared; start as many (torchrun --nproc-per-node)"
                )
        self.setups = [r for r in earlier if r["kind"] == "setup"]
        current = current_records(earlier)
        done = {stage_of(r) for r in current if r["kind"] == "done"}
        if self.config.model.small and not ((BASE, self.config.model.seed) in done and self.base_weights.exists()):
            done &= set()  # without the weights they began from, fine-tunings cannot be continued
        reached = {}
        for record in current:
            stage = stage_of(record)
            if record["kind"] == "checkpoint" and stage not in done and self.checkpoint(stage, record["step"]).is_dir():
                reached[stage] = record["step"]
        if self.config.model.small and not done:
            reached = {stage: step for stage, step in reached.items() if stage[0] == BASE}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.writer = RecordWriter(path)
        return done, reached, {stage_of(r) for r in current if r["kind"] == "diverged"}

    def write(self, *records):
        if self.writer is not None:
            self.writer.write(*records)

    def check_texts(self, texts):
        """Raises ValueError where a study that goes on would read other texts than it began with."""
        with together(self.processes):
            for setup in self.setups if self.processes.main else ():
                for key, told in texts.items():
                    if (began := setup["texts"][key]["fingerprint"]) != told["fingerprint"]:
                        raise ValueError(
                            f"--resume: {self.folder} was begun on other texts: {setup['texts'][key]['name']} has "
                            f"changed since (fingerprint {began} there, {told['fingerprint']} now)"
                        )

    def scratch(self, stage):
        """The folder of a stage's checkpoints, which is gone when it is done."""
        return self.folder / "checkpoints" / re.sub(r"[^\w.=-]", "_", "-".join(map(str, stage)))

    def checkpoint(self, stage, step):
        return self.scratch(stage) / f"checkpoint-{step}"

    def adapter(self, method, seed):
        """The folder of a finished fine-tuning's adapter."""
        return self.folder / "adapters" / f"{method}-{seed}"

    def clear(self, stage):
        if self.processes.main:
            shutil.rmtree(self.scratch(stage), ignore_errors=True)
            with contextlib.suppress(OSError):  # it is there no more, or another stage's lie in it
                self.scratch(stage).parent.rmdir()

    def close(self):
        if self.writer is not None:
            self.writer.close()


def check_folder(folder, resume):
    """Raises FileExistsError, NotADirectoryError for a folder that a study must not write to."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--out: {folder} is a file; a study needs a folder")
    used = folder.exists() and any(file.name != "results.jsonl" or file.stat().st_size for file in folder.iterdir())
    if used and not resume:
        raise FileExistsError(
            f"--out: {folder} is not empty. Give --resume to go on with a study in it, or another --out"
        )
    if used and not (folder / "results.jsonl").exists():
        raise FileExistsError(f"--out: {folder} holds files but no study to resume; choose another --out")


def _same_config(folder, recorded, wanted):
    """Raises ValueError where ``wanted`` is not ``recorded`` with, at most, something more to do."""
    try:
        began = as_config(recorded)
    except ValueError as error:
        raise ValueError(f"--resume: {folder} was begun by another version of artent ({error}); begin again") from error
    old, new = _flat(began.to_dict()), _flat(wanted.to_dict())
    for key in ("methods", "seeds"):
        if old[key] == new[key][: len(old[key])]:
            old[key] = new[key]
    changed = sorted(key for key in old if old[key] != new[key])
    changed = [key for key in changed if not any(key == free or key.startswith(f"{free}.") for free in _FREE)]
    if changed:
        told = ", ".join(f"{key} ({old[key]} there, {new[key]} now)" for key in changed)
        raise ValueError(
            f"--resume: {folder} holds a study with another configuration: {told}. Resume with the options it was "
            "begun with (more seeds and methods may be added behind the others), or choose another --out"
        )
    if set(began.controls) - {"untrained"} and began.reference != wanted.reference:
        raise ValueError(
            f"--resume: the controls of {folder} were made from {began.reference.name}, the LoRA of highest rank, and "
            f"would now be made from {wanted.reference.name}; add methods of lower rank, or choose another --out"
        )


def _flat(values):
    flat = {}
    for key, value in values.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat
