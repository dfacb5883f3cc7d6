"""An estimate as lines for people."""

from __future__ import annotations

__all__ = ["lines"]

GIB, MIB = 2**30, 2**20
PARTS = {"weights": "weights", "gradients": "gradients", "AdamW": "optimizer", "activations": "activations"}
PARTS |= {"logits": "logits", "gathered": "gathered"}


def lines(e):
    """The lines of an :class:`~artent.study.estimate.Estimate`."""
    return [*_head(e), "", *_memory(e), "", *_disk(e), "", *_time(e), "", *_verdicts(e)]


def _head(e):
    t, data = e.config.training, e.config.data
    how = f", {t.parallel}" if e.devices > 1 else ""
    passes = f"{t.accumulation} passes a step" if t.accumulation > 1 else "one pass a step"
    ways = [w for w, on in (("bfloat16 autocast", t.bf16), ("gradient checkpointing", t.checkpointing)) if on]
    return [
        f"Dry run of {e.config.name}: nothing is trained or loaded.",
        f"Model: {e.model}, {e.parameters:,} parameters in {e.config.model.dtype} ({e.told})",
        f"Training: {e.devices} device{'s' * (e.devices > 1)}{how}; {t.batch} × {data.context} tokens a device, "
        + "; ".join([f"{passes}, {t.steps} steps", *ways]),
    ]


def _memory(e):
    unit, per = ("GiB", GIB) if max(m.peak for m in e.methods) >= GIB else ("MiB", MIB)
    cells = {
        "trained": lambda m: f"{m.trainable:,}",
        **{name: lambda m, key=key: _number(getattr(m.memory, key) / per) for name, key in PARTS.items()},
        "training": lambda m: _number(m.memory.peak / per),
        "measuring": lambda m: _number(m.measuring / per),
        "process": lambda m: _number(m.process / per),
        "peak": lambda m: _number(m.peak / per),
    }
    table = [["", *cells], *([m.label, *(cell(m) for cell in cells.values())] for m in e.methods)]
    columns = [column for column in zip(*table) if not set(column[1:]) <= {"0.0"}]
    wide = [max(map(len, column)) for column in columns]
    rows = [
        "  ".join(text.rjust(size) if at else text.ljust(size) for at, (text, size) in enumerate(zip(row, wide)))
        for row in zip(*columns)
    ]
    return [
        f"Memory of one device, {unit}:",
        *rows,
        "  training: not the sum before it, as gradients come while activations go; right to about a tenth",
        "  measuring: with weights and AdamW; peak: the larger of the two"
        + ", and the process" * bool(e.methods[0].process),
    ]


def _disk(e):
    parts = ", ".join(f"{name.replace('_', ' ')} {_bytes(size)}" for name, size in e.disk.items() if size)
    return [f"Disk: {_bytes(e.disk.total)} at most ({parts})"]


def _time(e):
    m, total = e.machine, sum(e.seconds.values())
    runs = len(e.config.seeds)
    rows = [f"Time: {_duration(total)}, within a factor of about two:"]
    rows += [f"  {name}: {_duration(seconds)}" for name, seconds in e.seconds.items() if seconds]
    rows += [f"    {o.label}: {_duration(o.seconds)} a run, {runs} of them" for o in e.methods]
    rows.append(
        f"  reckoned from operations, at half of the {_speed(m.speed)} of a large {m.dtype} product that was measured "
        f"just now on this machine ({m.device})"
        + (f", {_speed(m.speed32)} in float32 for what is measured" if m.dtype != "float32" else "")
        + ("; what devices tell each other is left out" if e.devices > 1 else "")
        + "."
    )
    return rows


def _verdicts(e):
    if e.machine.kind != "cpu":
        where = f"that are free on {e.machine.device}"
    elif e.devices > 1:
        where = f"that each of {e.devices} processes can have of this machine's memory"
    else:
        where = "of this machine's memory"
    rows = [
        f"{m.label}: {_bytes(m.peak)} a device, {_verdict(m.fits)} the {_bytes(e.capacity)} {where}: {_sum(m)}"
        for m in e.methods
    ]
    if e.host:
        rows.append(
            f"Loading the model, once a process: {_bytes(e.host)}, {_verdict(e.host_fits)} the "
            f"{_bytes(e.machine.host)} of this machine's memory"
        )
    return [
        *rows,
        f"Disk: {_bytes(e.disk.total)}, {_verdict(e.disk.total <= e.free)} the {_bytes(e.free)} that are free",
    ]


def _verdict(fits):
    return "fits into" if fits else "DOES NOT FIT into"


def _sum(m):
    """weights 15.0 GiB + gradients 15.0 + AdamW 29.9 + …"""
    unit, per = ("GiB", GIB) if m.peak >= GIB else ("MiB", MIB)
    if training := m.memory.peak >= m.measuring:
        parts = {name: getattr(m.memory, key) for name, key in PARTS.items()}
    else:
        parts = {"weights": m.memory.weights, "AdamW": m.memory.optimizer}
        parts["what measuring takes"] = m.measuring - sum(parts.values())
    parts["the process"] = m.process
    (first, size), *rest = [(name, size) for name, size in parts.items() if size / per >= 0.05]
    told = " + ".join([f"{first} {_number(size / per)} {unit}", *(f"{n} {_number(x / per)}" for n, x in rest)])
    return told + ", not all at once" * training


def _number(x):
    return f"{x:,.1f}" if x < 10000 else f"{x:,.0f}"


def _bytes(size):
    return f"{_number(size / GIB)} GiB" if size >= GIB else f"{_number(size / MIB)} MiB"


def _speed(speed):
    return f"{speed / 1e12:.3g} Tflop/s" if speed >= 1e12 else f"{speed / 1e9:.3g} Gflop/s"


def _duration(seconds):
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.{1 if seconds < 20 * size else 0}f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1.5 else "a second"
