"""Many processes, on torch.distributed: who measures what, objects between ranks, whole tensors of sharded parameters.

Objects travel over a gloo group of their own, whatever carries the training: its timeout is bounded and its connections
notice at once when a process at the other end is gone. They are pickled, between processes of one run only.
"""

import os
import pickle
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Seconds without a word from a rank that still runs. Longer than any one profile should take; a rank that has ended is
# noticed at once.
TIMEOUT = 1800.0


@dataclass(frozen=True, eq=False)
class Processes:
    """The processes of a run, seen from one of them; every method is to be called by all of them, in the same order.

    Attributes:
        rank: of this process.
        size: how many there are.
        group: gloo, for objects; None where there is one process.
        timeout: seconds that a rank is waited for.
    """

    rank: int = 0
    size: int = 1
    group: Any = None
    timeout: float = TIMEOUT

    @property
    def main(self) -> bool:
        """Whether this is rank 0, where results end up."""
        return self.rank == 0

    def owners(self, pending: Sequence) -> list[int]:
        """The rank that measures each of ``pending``: the same answer everywhere, ``cost`` spread evenly.

        The most expensive first, each to the rank with the least so far.
        """
        owners, loads = [0] * len(pending), [0.0] * self.size
        for i in sorted(range(len(pending)), key=lambda i: (-pending[i].cost, i)):
            owners[i] = loads.index(min(loads))
            loads[owners[i]] += pending[i].cost
        return owners

    def collect(self, obj) -> list | None:
        """Every rank's object, by rank, on rank 0; None elsewhere. All leave together: it is a barrier too.

        Raises RuntimeError, on every rank that is left, where one ended or did not answer within the timeout.
        """
        if not self.main:
            self._send(obj, 0)
            if lost := self._receive(0):
                raise RuntimeError(lost)
            return None
        collected, lost = [obj], ""
        for rank in range(1, self.size):
            try:
                collected.append(self._receive(rank))
            except RuntimeError as error:
                lost = lost or str(error)
        self._tell(lost)
        return collected

    def broadcast(self, obj):
        """Rank 0's object, on every rank. Raises RuntimeError where a process ended, as ``collect`` does."""
        if not self.main:
            return self._receive(0)
        lost = ""
        for rank in range(1, self.size):
            try:
                self._send(obj, rank)
            except RuntimeError as error:
                lost = lost or str(error)
        if lost:
            raise RuntimeError(lost)
        return obj

    def agree(self, error: Exception | None = None) -> None:
        """Raise the first rank's error on every rank, if any has one; where all pass None, a barrier."""
        if self.size == 1 and error is not None:
            raise error
        errors = self.collect(told(error))
        if found := self.broadcast(first_told(errors) if self.main else None):
            raise as_error(found) from error

    def _tell(self, lost: str) -> None:
        """Rank 0's word to those that are left: "" is to go on."""
        for rank in range(1, self.size):
            try:
                self._send(lost, rank)
            except RuntimeError as error:
                lost = lost or str(error)  # who was told to go on before finds out with the next object
        if lost:
            raise RuntimeError(lost)

    def _send(self, obj, rank: int) -> None:
        content = torch.frombuffer(bytearray(pickle.dumps(obj)), dtype=torch.uint8)
        with self._explained(rank):
            dist.send(torch.tensor([len(content)]), group=self.group, group_dst=rank)
            dist.send(content, group=self.group, group_dst=rank)

    def _receive(self, rank: int):
        size = torch.zeros(1, dtype=torch.int64)
        with self._explained(rank):
            dist.recv(size, group=self.group, group_src=rank)
            content = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(content, group=self.group, group_src=rank)
        return pickle.loads(content.numpy().tobytes())

    @contextmanager
    def _explained(self, rank: int):
        """What gloo says of a lost connection, said so that one knows what to look for."""
        try:
            yield
        except RuntimeError as error:
            said = re.sub(r"^\[\S+\] ", "", str(error).split(" This is typically")[0])  # without gloo's source file
            if "timed out" in said.lower():
                raise RuntimeError(
                    f"rank {rank} of {self.size} did not answer rank {self.rank} within {self.timeout:g} s. Likely "
                    "cause: it hangs, its machine is out of reach, it does not call what the other ranks call (all of "
                    f"them have to), or it is still computing and needs a longer timeout ({said})"
                ) from error
            raise RuntimeError(
                f"rank {rank} of {self.size} ended, or closed its connection to rank {self.rank}, before all was "
                "done. Likely cause: it was killed (out of memory?) or raised an error; its own output or the "
                f"system's log tells ({said})"
            ) from error


ALONE = Processes()
_groups: dict = {}  # {(default group, timeout): group for objects}: made once, as making one needs every rank


def processes(timeout: float | None = None) -> Processes:
    """The processes of torch.distributed's default group; one where it is not initialised.

    The first call, and the first with another ``timeout`` (seconds), makes the group for objects: every rank calls it.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    timeout = TIMEOUT if timeout is None else float(timeout)
    if not 0 < timeout < 1e8:
        raise ValueError(f"timeout: expected seconds above 0, got {timeout}")
    world = dist.group.WORLD
    if any(made_for is not world for made_for, _ in _groups):
        _groups.clear()  # of a run that has ended
    if (world, timeout) not in _groups:
        # The first process gives up first, and the others learn of it: they would blame it for whom it waits for.
        patience = timedelta(seconds=timeout if dist.get_rank() == 0 else 1.5 * timeout)
        _groups[world, timeout] = dist.new_group(backend="gloo", timeout=patience)
    return Processes(dist.get_rank(), dist.get_world_size(), _groups[world, timeout], timeout)


@contextmanager
def launched(timeout: float | None = None) -> Iterator[Processes]:
    """For commands: the processes that torchrun started, or one where nothing did.

    They exchange objects only, so gloo is enough, on GPUs too; each process is given a GPU of its own, as far as there
    are. What is initialised already is used as it is.

    Raises RuntimeError where the environment tells of several processes, but not how they find each other.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if (dist.is_available() and dist.is_initialized()) or size == "1":
        yield processes(timeout)
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing or not dist.is_available():
        raise RuntimeError(
            f"WORLD_SIZE is {size}, but "
            + (f"{', '.join(missing)} not set" if missing else "torch has no distributed")
            + ": start several processes with torchrun, or unset WORLD_SIZE"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout or TIMEOUT))
    try:
        yield processes(timeout)
    finally:
        _groups.clear()
        dist.destroy_process_group()


def is_sharded(parameter: Tensor) -> bool:
    """Whether it has to be gathered to be read: a DTensor (FSDP2, tensor parallel) or one that ZeRO-3 partitioned."""
    return hasattr(parameter, "full_tensor") or hasattr(parameter, "ds_status")


def at_rest(model: nn.Module) -> None:
    """Let FSDP2 put back the shards of parameters that a forward pass without a backward one left whole.

    Those are in the dtype that the model computes in, which may be coarser than what is trained. Nothing is sent, and
    training goes on as it would have.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # a model that it shards has imported it
    for module in model.modules() if fsdp else ():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


@contextmanager
def whole(parameters: Iterable[Tensor]) -> Iterator[dict[int, Tensor]]:
    """{id(parameter): the whole tensor} of those parameters that are sharded, for as long as the context lasts.

    Collective: every rank enters it with the same parameters in the same order. The tensors are plain, without
    gradient, on the device that the shards are gathered on. Those of ZeRO-3 are the parameters' own memory and are let
    go at the end: what is to outlast the context has to be cloned.

    Raises RuntimeError where the processes cannot gather, with the likely cause.
    """
    sharded = [p for p in parameters if is_sharded(p)]
    if not sharded:
        yield {}
        return
    partitioned = [p for p in sharded if hasattr(p, "ds_status")]
    with ExitStack() as stack:
        with _gathering(sharded):
            if absent := [p for p in partitioned if p.ds_status.name != "AVAILABLE"]:
                from deepspeed import zero  # whoever has such parameters has it

                stack.enter_context(zero.GatheredParameters(absent))
            full = {id(p): p.detach() for p in partitioned}
            full |= {id(p): _full(p) for p in sharded if id(p) not in full}
        try:
            yield full
        finally:
            full.clear()  # before the next one is gathered


@torch.no_grad()
def _full(parameter: Tensor) -> Tensor:
    """The whole of a DTensor."""
    shard, kind = parameter.detach(), parameter.device_mesh.device_type
    # FSDP2 may keep it on the CPU, where the backend of its mesh cannot gather.
    return (shard if shard.device.type == kind else shard.to(kind)).full_tensor()


@contextmanager
def _gathering(parameters: list[Tensor]):
    """What torch and DeepSpeed raise when processes do not meet, said so that one knows what to look for."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(getattr(p, "ds_shape", p.shape))) for p in parameters[:4])
        raise RuntimeError(
            f"sharded parameters of shape {shapes} could not be gathered. Likely cause: another process ended (its own "
            f"output tells why), or did not come to the same gather: every rank has to measure ({error})"
        ) from error


_KEPT = {kind.__name__: kind for kind in (ValueError, TypeError, OSError, torch.OutOfMemoryError)}


def told(error: Exception | None) -> tuple[str, str] | None:
    """An error as something that can be sent: its type and message."""
    if error is None:
        return None
    kind = next((name for name, kept in _KEPT.items() if isinstance(error, kept)), type(error).__name__)
    return kind, str(error)


def first_told(errors: list[tuple[str, str] | None]) -> tuple[str, str] | None:
    """The error of the lowest rank that has one, with the rank in its message unless every rank has the same."""
    found = [(rank, error) for rank, error in enumerate(errors) if error is not None]
    if not found:
        return None
    rank, (kind, message) = found[0]
    if len(set(errors)) == 1:
        return kind, message
    more = f"; {len(found) - 1} more failed" if len(found) > 1 else ""
    return kind, f"{message} (on rank {rank} of {len(errors)}{more})"


def as_error(told: tuple[str, str]) -> Exception:
    """What was told, to be raised: a type that says what to do about it, or RuntimeError with the type's name."""
    kind, message = told
    if kind in _KEPT:
        return _KEPT[kind](message)
    return RuntimeError(message if kind == "RuntimeError" else f"{kind}: {message}")
