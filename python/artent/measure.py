"""Profiles of pending updates, streamed: few updates are held at once, and what is done is told at once."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch

from artent.distributed import Processes, is_sharded, whole
from artent.distributed import processes as all_processes
from artent.entanglement import EntanglementProfile
from artent.profile import entanglement_profile
from artent.reading.pending import PendingUpdate
from artent.rounds import ELEMENTS, in_rounds, lasting
from artent.updates import Update


class Measured(NamedTuple):
    """What became of a pending update."""

    name: str
    shape: tuple[int, int]
    profile: EntanglementProfile | None  # None: the weight did not change, or its update has no profile
    seconds: float  # wall time of reading and profiling, its share of a stack's
    failed: str | None = None  # why an update has no profile: it holds NaN or Inf, …


@torch.no_grad()
def measure(
    pending: Iterable[PendingUpdate], *, processes: Processes | None = None, keep_going: bool = False, **options
) -> Iterator[Measured]:
    """The profiles of ``pending``, in batches; ``options`` go to ``entanglement_profile``.

    ``keep_going`` tells in ``failed`` what ``entanglement_profile`` refuses, and goes on with the others.

    With several ``processes`` every one of them iterates to the end: the modules are shared out, those that are sharded
    gathered when their turn comes, and the first process gets all results, the others none. None: those of
    torch.distributed where weights are sharded, else this one alone.

    Raises TypeError and ValueError as ``entanglement_profile`` does, by the module's name; with several processes every
    one of them raises what one of them met, and RuntimeError where one of them ended or no longer answers.
    """
    pending = list(pending)
    if processes is None and any(is_sharded(p) for one in pending for p in one.parameters):
        processes = all_processes()
    if processes is not None and processes.size > 1:
        yield from in_rounds(pending, processes, partial(_measured, options, keep_going))
        return
    start, held, elements = time.perf_counter(), [], 0
    for one in pending:
        update = read_whole(one)
        held.append((one, update))
        elements += 0 if update is None else one.numbers
        if elements >= ELEMENTS:
            yield from _measured(options, keep_going, held, start)
            start, held, elements = time.perf_counter(), [], 0
    yield from _measured(options, keep_going, held, start)


def profiles_of(updates: Mapping[str, Update], **options) -> dict[str, EntanglementProfile]:
    """{name: profile} of updates by name, equal shapes computed together; with a gradient where it is recorded.

    Raises TypeError and ValueError as ``entanglement_profile`` does, by name.
    """
    names = list(updates)
    try:
        return dict(zip(names, entanglement_profile(list(updates.values()), **options), strict=True)) if names else {}
    except (TypeError, ValueError) as error:  # which speaks of update[i]
        message = re.sub(r"update\[(\d+)\]", lambda match: names[int(match[1])], str(error))
        raise type(error)(message) from error


def read_whole(one: PendingUpdate) -> Update | None:
    """The update, gathered where it is sharded: then every process has to ask for it."""
    with whole(one.parameters) as gathered:
        return lasting(one.read(gathered), gathered)


def _measured(options, keep_going, held, start) -> list[Measured]:
    """Of [(pending, update)] that were read since ``start``; the time is shared out by cost."""
    updates, failed = {one.name: update for one, update in held if update is not None}, {}
    try:
        profiles = profiles_of(updates, **options)
    except ValueError:
        if not keep_going:
            raise
        profiles = {}
        for name, update in updates.items():
            try:
                profiles |= profiles_of({name: update}, **options)
            except ValueError as error:
                failed[name] = str(error)
    seconds, cost = time.perf_counter() - start, sum(one.cost for one, _ in held)
    return [
        Measured(one.name, one.shape, profiles.get(one.name), seconds * one.cost / cost, failed.get(one.name))
        for one, _ in held
    ]
