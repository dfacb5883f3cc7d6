"""What commands check alike before they measure: the device, the module that draws, the folder."""

import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch

from artent.records import read_records


def device(name):
    """The torch device of that name. Raises ValueError for one that isn't there."""
    try:
        found = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: {name!r} is none that torch knows; expected cpu, cuda or cuda:1") from None
    if found.type == "cuda" and not (found.index or 0) < torch.cuda.device_count():
        raise ValueError(f"--device: {name!r} asked for, and torch sees {torch.cuda.device_count()} CUDA devices")
    return found


def drawing(options):
    """The module that draws, imported before anything is measured; None where nothing is to be drawn."""
    if options.plot and options.out is None:
        raise ValueError("--plot needs --out, the folder that figures are written to")
    if options.out is None or options.plot is False:
        return None
    try:
        from artent import plots
    except ImportError as error:
        raise ImportError(f"{error}, or give --no-plot") from error
    plots.plt.switch_backend("Agg")  # no window, wherever this runs
    return plots


def records_in(out):
    """The records that stand in ``--out`` already, none where there is nothing. Raises ValueError for a file."""
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out: {folder} is a file, expected a folder")
    path = folder / "results.jsonl"
    return read_records(path) if path.exists() else []


def something_else(out):
    """The error for a folder with another command's records."""
    return ValueError(
        f"--out: {Path(out) / 'results.jsonl'} holds records of something else (a study?); choose another folder"
    )


@contextmanager
def plain_warnings(command, silent=False):
    """Warnings of the library as lines of the command on standard error, without the code that they come from."""

    def show(message, category, *where, **more):
        if not silent:
            print(f"artent {command}: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
