"""Pending updates shared out over processes, measured in rounds.

In a round every rank gets modules of its own, of about the same cost in all. They are gathered one at a time, by all
ranks in the same order, and only the owner keeps its update; then the profiles are computed side by side, and the first
process collects them. What one rank raises, every rank raises.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

from torch import Tensor

from artent.distributed import Processes, as_error, first_told, is_sharded, told, whole
from artent.entanglement import EntanglementProfile
from artent.reading.pending import PendingUpdate
from artent.updates import Update

# Updates are read until they hold as many numbers, then profiled together: equal shapes as one stack. More would be no
# faster on a CPU, and an interrupted run would lose more.
ELEMENTS = 1 << 24
_COST = 1e9  # of a round at least, in multiplications and additions: else the exchange would take as long as the work


def in_rounds(pending: list[PendingUpdate], processes: Processes, profile: Callable) -> Iterator:
    """What ``profile`` gives for [(pending, update)] and the time it was begun at: all of it on rank 0, none elsewhere.

    Every rank iterates to the end.

    Raises, on every rank, the error of the first rank that has one, and RuntimeError where a process ended.
    """
    processes.agree(_differs(processes.broadcast(_signature(pending)), _signature(pending)))
    for lots in rounds(pending, processes.owners(pending), processes.size):
        measured, error = _measured(pending, lots, processes, profile)
        collected = processes.collect((measured, told(error)))
        failed = None
        if processes.main:
            failed = first_told([error for _, error in collected])
            try:
                for measured, _ in collected:
                    yield from measured
            except GeneratorExit:
                with suppress(RuntimeError):
                    processes.broadcast(("RuntimeError", "the first process stopped before all was measured"))
                raise
        if failed := processes.broadcast(failed):
            raise as_error(failed) from error


def rounds(pending: list[PendingUpdate], owners: list[int], size: int) -> Iterator[list[list[int]]]:
    """For each round and rank the indices of its modules: the expensive ones first, about the same cost for each rank.

    A round ends when its most expensive module does. Until then the other ranks take more of theirs, unless they would
    hold more numbers than the largest of the round has, or than are profiled together anyway.
    """
    left = [
        sorted((i for i in range(len(pending)) if owners[i] == rank), key=lambda i: -pending[i].cost)
        for rank in range(size)
    ]
    while any(left):
        first = [pending[own[0]] for own in left if own]
        most, room = max([_COST, *(one.cost for one in first)]), max([ELEMENTS, *(one.numbers for one in first)])
        yield [_taken(pending, own, most, room) for own in left]


def _taken(pending: list[PendingUpdate], own: list[int], cost: float, room: int) -> list[int]:
    """Take from ``own`` the first, and those after it for which cost and room are left."""
    lot = []
    while own:
        cost, room = cost - pending[own[0]].cost, room - pending[own[0]].numbers
        if lot and (cost < 0 or room < 0):
            break
        lot.append(own.pop(0))
    return lot


def lasting(update: Update | None, gathered: Mapping[int, Tensor]) -> Update | None:
    """The update, copied where it is the memory of gathered tensors: ``whole`` may let go of that."""
    memory = {tensor.untyped_storage().data_ptr() for tensor in gathered.values()}

    def kept(part):
        if isinstance(part, Tensor):
            return part.clone() if part.untyped_storage().data_ptr() in memory else part
        return [kept(core) for core in part]

    if not memory or update is None:
        return update
    return kept(update) if isinstance(update, Tensor) else replace(update, B=kept(update.B), A=kept(update.A))


def _measured(pending, lots, processes, profile) -> tuple[list, Exception | None]:
    """What this rank found in a round, and what went wrong. It joins every gather, whatever went wrong before."""
    start, held, error = time.perf_counter(), [], None
    for rank, lot in enumerate(lots):
        for one in (pending[i] for i in lot):
            with whole(one.parameters) as gathered:
                if rank == processes.rank and error is None:
                    try:
                        held.append((one, lasting(one.read(gathered), gathered)))
                    except Exception as raised:  # the other ranks are in the next gather already
                        error = raised
    if error is None:
        try:
            return [one._replace(profile=_on_cpu(one.profile)) for one in profile(held, start)], None
        except Exception as raised:
            error = raised
    return [], error


def _on_cpu(profile: EntanglementProfile | None) -> EntanglementProfile | None:
    tensors = {} if profile is None else {name: x.cpu() for name, x in vars(profile).items() if isinstance(x, Tensor)}
    return replace(profile, **tensors) if tensors else profile


def _signature(pending) -> list[tuple]:
    return [(one.name, one.shape, one.rank, tuple(map(is_sharded, one.parameters))) for one in pending]


def _differs(first: list[tuple], own: list[tuple]) -> ValueError | None:
    """Why this rank and the first cannot share the work: they do not list the same updates."""
    if first == own:
        return None
    pairs = enumerate(zip([*first, None], [*own, None]))
    where, (theirs, ours) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    return ValueError(
        f"pending: the processes do not have the same updates: number {where} is {ours and ours[:3]} here and "
        f"{theirs and theirs[:3]} on rank 0 ({len(own)} and {len(first)} in all). Likely cause: other targets, or "
        "folders that differ between machines"
    )
