"""The study from nothing to its report: check, pretrain, fine-tune by every method and seed, vary, measure, write."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import time

import torch
import torch.distributed

import artent
from artent.distributed import processes
from artent.study import finetune, preflight
from artent.study.data import load_data
from artent.study.data.corpora import english
from artent.study.models import device_of, tokenizer_of
from artent.study.stages import Stages
from artent.study.store import BASE, Store

__all__ = ["run_study"]

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy")


def run_study(config, folder, resume=False):
    """Run ``config`` into ``folder`` and return the path of the report.

    Stages that ``folder`` already holds are not run again with ``resume``, and one that was interrupted goes on from
    its last checkpoint. Under torchrun all processes call it; the first one writes, and alone returns a path.

    Raises FileExistsError for a folder in use without ``resume``, and ValueError, before anything is trained, for one
    of another configuration and for whatever of the configuration cannot be run (see ``preflight``).
    """
    started = time.perf_counter()
    preflight.check(config, folder, resume)
    with _processes(config) as every, finetune.quiet():
        store = Store(folder, config, resume, every)
        try:
            if not set(stages_of(config)) <= store.done:
                _run(config, store)
                store.write({"kind": "finished", "seconds": time.perf_counter() - started})
        finally:
            store.close()
        return _report(store)


def stages_of(config):
    """Every stage of a study, in the order in which they are run."""
    made = [control for control in config.controls if control in ("negated", "haar", "random")]
    for seed, stage in [(config.model.seed, (BASE, config.model.seed)), *((s, (m.name, s)) for m, s in config.runs)]:
        yield stage
        if config.reference is not None and stage == (config.reference.name, seed):
            yield from ((control, seed) for control in made)
    yield from (variation.stage for variation in config.variations)


def _run(config, store):
    tokenizer = tokenizer_of(config.model)
    old = _old_text(config, tokenizer)
    new = load_data(config.data, tokenizer)
    setup = setup_record(config, {"old": old, "new": new})
    store.check_texts(setup["texts"])
    stages = Stages(config, store, old, new, tokenizer)  # takes the probe, which may find too few texts
    store.write(setup)
    stages.base()
    for method, seed in config.runs:
        stages.tune(method, seed)
        if method == config.reference:
            stages.controls(seed)
    for variation in config.variations:
        stages.vary(variation)


def _old_text(config, tokenizer):
    """English that the small model is pretrained on; of any model it tells what is forgotten, and is half the probe.

    It is short: beside a large context, blocks no longer than what is measured leave enough of them to hold out.
    """
    if config.model.small:
        return english(config.data.context, 0.05, tokenizer)
    return english(config.measure.length, 0.5, tokenizer)


def setup_record(config, corpora):
    """Everything the numbers depend on that is not in the code."""
    texts = {key: {"name": c.name, "fingerprint": c.fingerprint, **c.told} for key, c in corpora.items()}
    versions = {"artent": artent.__version__, "python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in PACKAGES}
    where = torch.cuda.get_device_name() if device_of(config.training) == "cuda" else platform.machine()
    machine = f"{where}, {os.cpu_count()} cores, torch on {torch.get_num_threads()} threads"
    size = processes().size
    machine += f", {size} processes" if size > 1 else ""
    return {
        "kind": "setup",
        "config": config.to_dict(),
        "texts": texts,
        "versions": versions,
        "processes": size,
        "machine": machine,
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


@contextlib.contextmanager
def _processes(config):
    """The processes that torchrun started, on the backend that training wants; one where nothing did."""
    several = os.environ.get("WORLD_SIZE", "1") != "1" and not torch.distributed.is_initialized()
    if several:
        from accelerate import PartialState

        PartialState(cpu=device_of(config.training) == "cpu")
    try:
        yield processes()
    finally:
        if several:
            torch.distributed.destroy_process_group()


def _report(store):
    if not store.processes.main:
        return None
    from artent.study.report import write_report

    return write_report(store.folder)
