"""Processes of a run, forked from one that has imported everything already: importing torch takes seconds for each."""

import json
import os
import signal
import time
from pathlib import Path

import torch.distributed as dist

LIMIT = 60.0  # seconds until what still runs counts as hung


def run(folder, size, target):
    """``target(rank, folder)`` on ``size`` processes of a gloo group; what it returns or raises in rank.json each.

    A process that was killed leaves no such file; one that stopped itself leaves "stopped", one that hangs "hung".
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    children = {}
    for rank in range(size):
        if child := os.fork():
            children[child] = rank
            continue
        try:
            told = _outcome(rank, size, folder, target)
            (folder / f"{rank}.json").write_text(json.dumps(told))
        finally:
            os._exit(0)
    _wait(children, folder)


def _outcome(rank, size, folder, target):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        return {"returned": target(rank, folder)}
    except Exception as error:
        return {"raised": type(error).__name__, "message": str(error)}


def _wait(children, folder):
    end = time.monotonic() + LIMIT
    stopped = set()
    while children:
        child, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        if child and os.WIFSTOPPED(status):
            stopped.add(child)
        elif child:
            children.pop(child)
        elif set(children) == stopped or time.monotonic() > end:
            for child, rank in children.items():
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                (folder / f"{rank}.json").write_text(json.dumps("stopped" if child in stopped else "hung"))
            return
        else:
            time.sleep(0.02)
