"""What the benchmarks share: seconds of a call, rivals in alternation, a watch on other work, and result files."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import torch

import artent_ext

OTHERS = 0.15  # cores that other work may take while something is timed; a machine at rest shows up to 0.06
DRIFT = 1.15  # slowest over fastest of the same fixed work between rounds


def seconds(function, least=0.2, rest=0.3):
    """Seconds of a call on the CPU, over at least ``least`` seconds of calls and one call."""
    sleep(rest)  # the threads of the library that ran before spin for a while: let them come to rest
    start, took, calls = perf_counter(), 0.0, 0
    while not calls or took < least:
        function()
        calls += 1
        took = perf_counter() - start
    return took / calls


def cuda_seconds(function, calls=5):
    """Seconds of a call on the current GPU: median between events, with the L2 cache overwritten before each call."""
    function()
    cache = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
    for start, end in events:
        cache.zero_()  # also keeps the GPU busy while the CPU prepares the call
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return median(start.elapsed_time(end) for start, end in events) / 1e3


def alternate(functions, rounds, seconds=seconds, between=lambda: None):
    """{name: seconds in each round}; all take their turn in a round, so what else the machine does falls on all."""
    took = {name: [] for name in functions}
    for _ in range(rounds):
        between()
        for name, function in functions.items():
            took[name].append(seconds(function))
    between()
    return took


def ratio(theirs, ours):
    """The median over rounds of theirs over ours: each pair ran side by side."""
    return median(t / o for t, o in zip(theirs, ours, strict=True))


class Watch:
    """Other work on this machine inside a ``with`` block: the cores it took, and how the time of fixed work drifted.

    ``tick()`` between rounds times the fixed work. The cores come from /proc/stat (time stolen from a virtual machine
    included) less this process's own; where there is no such file, from the load average beyond our own threads.
    """

    def __enter__(self):
        side = 384
        self.operands = torch.randn(2, side, side, generator=torch.Generator().manual_seed(0))
        self.work = []
        self.start = perf_counter(), _busy_seconds(), _own_seconds()
        return self

    def tick(self):
        best = float("inf")
        for _ in range(10):
            start = perf_counter()
            torch.mm(*self.operands)
            best = min(best, perf_counter() - start)
        self.work.append(best)

    def __exit__(self, *_):
        end = perf_counter(), _busy_seconds(), _own_seconds()
        wall, busy, own = (now - then for now, then in zip(end, self.start))
        others = (busy - own) / wall if _STAT.exists() else os.getloadavg()[0] - torch.get_num_threads()
        drift = max(self.work) / min(self.work) if self.work else 1
        self.disturbances = []
        if others > OTHERS:
            self.disturbances.append(f"other work took {others:.2f} cores")
        if drift > DRIFT:
            self.disturbances.append(f"the same work took {drift:.2f} times as long at another moment")


_STAT = Path("/proc/stat")


def _busy_seconds():
    """Seconds of all cores that were not idle, since boot."""
    if not _STAT.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, _STAT.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds():
    """Of this process and of those that it started and waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def undisturbed(measurement, tries=10):
    """``measurement(tick)``, tried again while other work disturbs it; and what disturbed the last try, a list."""
    for _ in range(tries):
        with Watch() as watch:
            result = measurement(watch.tick)
        if not watch.disturbances:
            break
    return result, watch.disturbances


def refusal(disturbances, where, force):
    """A row that says why there is no ratio, or None."""
    if not disturbances or force:
        return None
    return {"refused": f"{where}: {'; '.join(disturbances)}. No ratio is told on a busy machine (--force tells it)"}


def quiet_start(force):
    """Ends the benchmark, with the reason, where other work already runs."""
    with Watch() as watch:
        sleep(1)
    if no := refusal(watch.disturbances, "before the start", force):
        raise SystemExit(no["refused"])


def machine():
    return {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "torch": torch.__version__}  # fmt: skip


def device_facts(device):
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"device": name, "build": artent_ext.build_info(), "cuda": torch.version.cuda, "torch": torch.__version__}


def write(path, result):
    Path(path).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def add_section(path, facts, name, section):
    """Puts a section into a result file. Other sections stay if they tell of the same device and build."""
    path = Path(path)
    old = json.loads(path.read_text()) if path.exists() else {}
    same = all(old.get(key) == value for key, value in json.loads(json.dumps(facts)).items())
    write(path, {**(old if same else {}), **facts, name: section})
