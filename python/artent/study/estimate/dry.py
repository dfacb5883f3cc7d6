"""The dry run: every method of a study counted on the meta device, and held against this machine."""

from __future__ import annotations

import os
import resource
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from artent.study import models
from artent.study.data.rows import OURS
from artent.study.estimate.architecture import read_architecture
from artent.study.estimate.disk import Disk, disk_use
from artent.study.estimate.machine import Machine, look
from artent.study.estimate.measuring import measuring_memory
from artent.study.estimate.memory import StepMemory, step_memory
from artent.study.estimate.trained import count
from artent.study.estimate.work import Worker

__all__ = ["Estimate", "MethodEstimate", "dry_run"]

# Trainings reach a third to two thirds of a large product's speed: norms, softmax and copies move memory.
REACHED = 0.5
MADE = ("negated", "haar", "random")


@dataclass(frozen=True)
class MethodEstimate:
    """One method on one device: numbers of parameters, bytes while training and while measuring, seconds of a run.

    ``peak`` is the larger of training and measuring, and what the ``process`` itself holds on a CPU (libraries, a
    small model's first weights); ``fits`` compares it with what one device has.
    """

    name: str
    label: str
    parameters: int
    trainable: int
    memory: StepMemory
    measuring: int
    process: int
    peak: int
    fits: bool
    seconds: float

    def to_dict(self):
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """What a study would take.

    Attributes:
        config: the ``StudyConfig``; model, told: its model, and where the sizes come from.
        devices: how many train; machine: what this one is.
        methods: an estimate each.
        capacity: bytes of one device; on a CPU its share of the machine's memory.
        host, host_fits: bytes that the processes take of the machine's memory where they compute on GPUs.
        disk, free: bytes that are written, and that are free.
        seconds: of everything, by what it is for: base, methods, controls, sweep.
    """

    config: object
    model: str
    told: str
    parameters: int
    devices: int
    machine: Machine
    methods: tuple[MethodEstimate, ...]
    capacity: int
    host: int
    host_fits: bool
    disk: Disk
    free: int
    seconds: dict[str, float]

    @property
    def fits(self):
        """Whether everything does."""
        return all(m.fits for m in self.methods) and self.host_fits and self.disk.total <= self.free

    def to_dict(self):
        """Plain values for JSON."""
        values = {
            name: getattr(self, name)
            for name in ("model", "told", "parameters", "devices", "capacity", "host", "host_fits", "free", "seconds")
        }
        return {
            **values,
            "config": self.config.to_dict(),
            "machine": self.machine.to_dict(),
            "methods": [m.to_dict() for m in self.methods],
            "disk": dict(self.disk),
            "fits": self.fits,
        }

    def lines(self):
        """A table for people, with a verdict a method at its end."""
        from artent.study.estimate.table import lines

        return lines(self)


def dry_run(config, devices=None, folder="."):
    """The :class:`Estimate` of ``config`` on ``devices`` (None: torchrun's processes, or one) like this machine's.

    A second or two: the speed is that of a matrix product measured now. ``folder`` is on the disk that is asked for its
    free space. Raises ValueError as ``preflight.check`` does for the model and the methods.
    """
    devices = devices or int(os.environ.get("WORLD_SIZE", "1"))
    training, dtype = config.training, config.model.dtype
    architecture = read_architecture(config.model, config.data.context)
    packed = config.data.packing and config.data.name not in OURS  # ours are one text, without borders
    methods = {method.name: method for method, _ in config.runs}
    trained = {name: count(architecture, m, config.measure.targets, dtype) for name, m in methods.items()}
    machine = look(models.device_of(training), "bfloat16" if training.bf16 else dtype)
    cpu = machine.kind == "cpu"
    capacity = machine.memory // devices if cpu else machine.memory
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    worker, found = Worker(config, architecture, packed), []
    for name, one in trained.items():
        sizes = {"context": config.data.context, "packed": packed, "targets": config.measure.targets}
        memory = step_memory(architecture, one.model, one.method, training, dtype, devices=devices, **sizes)
        measuring = measuring_memory(config, architecture, one) + memory.weights + memory.optimizer
        kept = one.target_weights if cpu and config.model.small and one.method.kind == "full-ft" else 0
        own = process + kept if cpu else 0
        peak = max(memory.peak, measuring) + own
        seconds = _seconds(worker.tune(one), machine)
        counts = one.parameters, one.trainable
        found.append(
            MethodEstimate(name, one.method.label, *counts, memory, measuring, own, peak, peak <= capacity, seconds)
        )
    weights = max(one.weights for one in trained.values())
    host = 0 if cpu else devices * (weights + process)  # every process loads the model before it goes to its device
    return Estimate(
        config=config,
        model=config.model.name,
        told=architecture.told,
        parameters=sum(p.numel() for p in architecture.model(dtype).parameters()),
        devices=devices,
        machine=machine,
        methods=tuple(found),
        capacity=capacity,
        host=host,
        host_fits=host <= machine.host,
        disk=disk_use(config, architecture, trained),
        free=shutil.disk_usage(_existing(folder)).free,
        seconds=_total(config, worker, trained, found, machine),
    )


def _total(config, worker, trained, found, machine):
    of = {one.name: one.seconds for one in found}
    made = sum(control in MADE for control in config.controls) * len(config.seeds)
    return {
        "base": _seconds(worker.base(), machine),
        "methods": sum(of[method.name] for method, _ in config.runs),
        "controls": made * _seconds(worker.control(), machine),
        "sweep": sum(_seconds(worker.vary(trained[v.of]), machine) for v in config.variations),
    }


def _seconds(work, machine):
    return work.training / (REACHED * machine.speed) + work.measuring / (REACHED * machine.speed32)


def _existing(folder):
    folder = Path(folder).expanduser().absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
