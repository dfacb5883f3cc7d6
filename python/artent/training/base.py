"""The weights that a training started from, kept for as long as it is measured: in memory, or on disk."""

import os
from contextlib import contextmanager
from pathlib import Path

from artent.distributed import ALONE
from artent.reading.live_adapters import adapted_layers
from artent.reading.snapshot import snapshot
from artent.reading.weights import read_weights, unwrap

BASE_FILE = "artent_base.safetensors"
_BASE_FOLDER = "artent_base"  # of several processes: a file each
KEEP = ("memory", "disk")


def needs_base(model, base):
    """Whether what training writes is told from a copy of the first weights only; adapters hold their own update."""
    return base is None and not adapted_layers(unwrap(model))


def check_keep(keep_base):
    """Raises ValueError where ``keep_base`` is neither "memory" nor "disk"."""
    if keep_base not in KEEP:
        raise ValueError(f"keep_base={keep_base!r}: expected 'memory' or 'disk'")


def start_base(model, targets, folder=None, keep_base="memory", processes=ALONE):
    """The weights as they are now, as ``Weights``: a copy on the CPU, in their own dtype.

    In ``folder``, where there is one, they are written to ``artent_base.safetensors``, for a run that resumes. With
    ``keep_base="disk"`` they are read from there, a tensor at a time, whenever they are needed, and no copy stays in
    memory; making the file takes one for a moment.

    With several ``processes`` all of them call it. Each keeps its share, and writes it to a file of its own in
    ``artent_base/``: a folder that all of them see.
    """
    kept = snapshot(model, targets, processes)
    if folder is None:
        return kept
    file = base_path(folder, processes)
    with together(processes):
        if processes.main:
            _clear(Path(folder))
    with together(processes):
        if processes.size == 1:
            _save(kept.tensors.own, file)
        elif kept.tensors.own:
            _save(kept.tensors.own, file / f"rank-{processes.rank:05d}.safetensors")
    return read_weights(file, "base") if keep_base == "disk" else kept


def run_base(model, targets, folder, step, keep_base="memory", processes=ALONE):
    """``start_base`` of a run that begins; of one that resumes at ``step``, what it wrote then, read from disk.

    Raises ValueError where a run resumes and the file is missing.
    """
    if not step:
        return start_base(model, targets, folder, keep_base, processes)
    for file in (Path(folder) / BASE_FILE, Path(folder) / _BASE_FOLDER):
        if file.exists():
            return read_weights(file, "base")
    raise ValueError(
        f"training resumes at step {step}, and {Path(folder) / BASE_FILE} with the weights it started from is missing, "
        "so what it wrote is unknown. Pass base, or internal=False. Likely cause: artent was not attached when the run "
        "began, or the output folder was moved"
    )


def base_path(folder, processes=ALONE):
    """Where the first weights are written."""
    return Path(folder) / (BASE_FILE if processes.size == 1 else _BASE_FOLDER)


@contextmanager
def together(processes):
    """What one process raises inside, all raise; and none goes on before all are done."""
    failed = None
    try:
        yield
    except Exception as error:
        if processes.size == 1:
            raise
        failed = error
    if processes.size > 1:
        processes.agree(failed)


def _clear(folder):
    """Files of an earlier run, which other numbers of processes wrote, are not to be mixed with this one's."""
    for file in (folder / BASE_FILE, *(folder / _BASE_FOLDER).glob("rank-*.safetensors")):
        file.unlink(missing_ok=True)
    if (folder / _BASE_FOLDER).is_dir() and not any((folder / _BASE_FOLDER).iterdir()):
        (folder / _BASE_FOLDER).rmdir()


def _save(tensors, file):
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    save_file(tensors, part)
    os.replace(part, file)  # whole or not there
