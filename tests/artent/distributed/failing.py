"""What goes wrong in a run of many processes, each in a run of its own, for test_failing.py: ``failing.py OUT``.

A scenario's folder holds what every rank returned or raised (``forked.py``), and its results.jsonl.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import artent.rounds
import torch
import torch.distributed as dist
from artent.checkpoints import pending_updates
from artent.distributed import ALONE, is_sharded, launched, processes, whole
from artent.measure import measure
from artent.reading.pending import PendingUpdate
from artent.records import RecordWriter
from forked import run
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

artent.rounds._COST = 0.0  # a module a round for each rank, as in a large model


def modules(number, read=lambda i, update: update):
    """Pending updates of one cost, which the ranks therefore own in turn; ``read(i, update)`` is called to read one."""
    generator = torch.Generator().manual_seed(0)
    updates = [torch.randn(8, 12, generator=generator, dtype=torch.float64) for _ in range(number)]
    return [
        PendingUpdate(f"layers.{i}", (8, 12), None, lambda gathered, i=i: read(i, updates[i])) for i in range(number)
    ]


def write(pending, here, folder):
    """Measure, writing what arrives as the recorder does; the number of results."""
    number = 0
    with RecordWriter(folder / "results.jsonl") if here.main else open(os.devnull) as file:
        for one in measure(pending, processes=here):
            file.write({"kind": "profile", "module": one.name, **one.profile.to_dict()})
            number += 1
    return number


def signalled(number, victim, module, rank, folder, timeout=60):
    """``victim`` sends itself a signal when it is to read a module."""

    def read(i, update):
        if rank == victim and i == module:
            os.kill(os.getpid(), number)
        return update

    return write(modules(12, read), processes(timeout), folder)


def killed_gathering(rank, folder):
    """Killed while the others gather the next parameter of an FSDP2 model."""
    model, before = sharded()
    pending = pending_updates(model, before)

    def read(one, gathered):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return one.read(gathered)

    pending = [PendingUpdate(one.name, one.shape, one.rank, partial(read, one), one.parameters) for one in pending]
    return write(pending, processes(60), folder)


def sharded():
    """A model under FSDP2, 13 rows a matrix, and its weights from before."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 13, bias=False) if i % 2 else nn.Linear(13, 8, bias=False) for i in range(6)))
    before = {name: p.detach() + 1 for name, p in model.named_parameters()}
    return fully_shard(model), before


def one_raises(rank, folder):
    """One rank's update cannot be profiled, and later one cannot be read; between and after, all goes well."""
    here, told = processes(60), []

    def nan(i, update):
        return update * torch.nan if i == 4 else update

    def unreadable(i, update):
        if i == 5:
            raise OSError("cannot read layers.5")
        return update

    model, before = sharded()
    broken = pending_updates(model, before)
    broken[1] = PendingUpdate("lost", broken[1].shape, None, partial(unreadable, 5), broken[1].parameters)
    for pending in (modules(6, nan), modules(6), modules(6, unreadable), broken, pending_updates(model, before)):
        names = []
        try:
            for one in measure(pending, processes=here):
                names.append(one.name)
            told.append([names, None, None])
        except Exception as error:
            told.append([names, type(error).__name__, str(error)])
    return told


def lists_differ(rank, folder):
    """One rank's model has a module less."""
    return list(measure(modules(6 - (rank == 1)), processes=processes(60)))


def first_leaves(rank, folder):
    """The first rank stops iterating, which it must not."""
    here = processes(60)
    for _ in measure(modules(6), processes=here):
        break
    return "left"


def objects(rank, folder):
    """Objects between ranks; whole tensors of every placement; one group for all of it."""
    here = processes(60)
    with launched() as same:  # an initialised run is used as it is
        assert (same.rank, same.size) == (here.rank, here.size)
    assert processes(60).group is here.group
    assert here.broadcast([rank, torch.full((2,), rank)])[1].tolist() == [0, 0]
    collected = here.collect({"rank": rank, "tensor": torch.full((rank + 1,), rank)})
    if here.main:
        assert [c["tensor"].tolist() for c in collected] == [[i] * (i + 1) for i in range(here.size)]
    else:
        assert collected is None
    here.agree()
    mesh = dist.init_device_mesh("cpu", (here.size,))
    W = torch.arange(35.0).reshape(5, 7)
    placed = [
        nn.Parameter(distribute_tensor(W + i, mesh, [p])) for i, p in enumerate([Shard(0), Shard(1), Replicate()])
    ]
    plain = nn.Parameter(W)
    assert [is_sharded(p) for p in (*placed, plain)] == [True, True, True, False]
    with whole([plain, *placed]) as gathered:
        assert sorted(gathered) == sorted(map(id, placed))
        for i, p in enumerate(placed):
            assert type(gathered[id(p)]) is torch.Tensor
            assert torch.equal(gathered[id(p)], W + i)
    assert gathered == {}  # let go
    said = None
    try:
        here.agree(ValueError("of all"))
    except ValueError as error:
        said = str(error)
    assert said == "of all"
    here.agree(KeyError(f"of rank {rank}") if rank else None)


def main(out):
    assert processes() is ALONE
    out = Path(out)
    run(out / "killed", 3, partial(signalled, signal.SIGKILL, 2, 5))
    run(out / "first_killed", 3, partial(signalled, signal.SIGKILL, 0, 6))
    run(out / "stopped", 4, partial(signalled, signal.SIGSTOP, 2, 6, timeout=2))
    for scenario in (killed_gathering, one_raises, lists_differ, first_leaves, objects):
        run(out / scenario.__name__, 3 if scenario is not killed_gathering else 4, scenario)


if __name__ == "__main__":
    main(sys.argv[1])
