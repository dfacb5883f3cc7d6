"""Everything about a study that can be known before it trains: told at once, and not after an hour."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import torch

from artent.mps import balanced_sites, largest_bonds
from artent.sites import prime_factors
from artent.study import models
from artent.study.data.files import KINDS
from artent.study.estimate import architecture, disk, trained
from artent.study.measuring.chain import chain_sites
from artent.study.store import check_folder

__all__ = ["check"]

NEEDS_TEXT = ("eva", "corda", "lora_ga")
MARGIN = 1.1  # of the disk's free space over what is estimated


def check(config, folder, resume=False):
    """Raises ValueError for what keeps ``config`` from running here into ``folder``, the first thing found.

    The machine (device, bfloat16, processes), the data's file, the model's folder, tokenizer and sizes (on the meta
    device: no weight is read), the methods on it, and the disk. What rows hold is for ``load_data``. FileExistsError
    and NotADirectoryError for a folder that another study has, as ``store.check_folder``.
    """
    folder = Path(folder).expanduser()
    first = os.environ.get("RANK", "0") == "0"  # the others may come when it has begun to write
    if first:
        check_folder(folder, resume)
        _check_writable(folder)
    _check_machine(config)
    _check_data(config.data)
    with torch.random.fork_rng(devices=()):  # making models moves it, on the meta device too
        shape = architecture.read_architecture(config.model, config.data.context)
        _check_lengths(config, shape)
        found = _check_methods(config, shape)
    _check_model(config.model)
    if first:
        _check_disk(folder, disk.disk_use(config, shape, found))


def _check_writable(folder):
    there = _existing(folder)
    if not there.is_dir():
        raise ValueError(f"--out: {folder} cannot be made: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"--out: {there} cannot be written to; choose another --out, or change its permissions")


def _existing(folder):
    """``folder``, or the nearest folder above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _check_machine(config):
    training, processes = config.training, int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if training.device == "cuda" and not torch.cuda.is_available():
        built = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no GPU and driver"
        raise ValueError(f"training.device is cuda, but {built}; take training.device=auto, or cpu")
    device = models.device_of(training)
    if device == "cuda" and here > torch.cuda.device_count():
        raise ValueError(
            f"--nproc-per-node: {here} processes were started for {torch.cuda.device_count()} GPUs; each needs one"
        )
    if config.model.dtype == "bfloat16" and not training.bf16 and any(m.kind == "full-ft" for m in config.methods):
        raise ValueError(
            "training.bf16: full FT keeps float32 weights beside the bfloat16 ones of model.dtype, which needs "
            "autocast: set it to true, or take model.dtype=float32"
        )
    if training.bf16 and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(
            f"training.bf16: {torch.cuda.get_device_name()} has no bfloat16 arithmetic; take training.bf16=false"
        )
    if training.parallel == "fsdp" and processes == 1 and any(m.kind == "full-ft" for m in config.methods):
        raise ValueError(
            "training.parallel is fsdp, which shares full FT out over several processes, but there is one: start the "
            "study under torchrun (torchrun --nproc-per-node 8 --no-python artent study …), or take "
            "training.parallel=ddp"
        )


def _check_data(data):
    """That a file or folder is there; its rows are read later."""
    path = Path(data.name).expanduser()
    local = path.suffix.lower() in KINDS or path.is_absolute() or data.name.startswith((".", "~"))
    if (local or data.name.count("/") > 1) and not path.exists():
        raise ValueError(f"data.name: there is no file or folder {data.name}")
    if path.is_dir() and not any(path.iterdir()):
        raise ValueError(f"data.name: the folder {data.name} is empty")


def _check_model(model):
    folder = Path(model.name).expanduser()
    if not model.small and folder.is_dir() and not any(folder.glob("*.safetensors")):
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".gguf"))
        hint = f"{', '.join(others[:3])} are not read" if others else "is the copy whole?"
        raise ValueError(f"model.name: the folder {model.name} has no weights in safetensors files ({hint})")
    models.tokenizer_of(model)


def _check_lengths(config, shape):
    if shape.positions is not None and config.data.context > shape.positions:
        raise ValueError(
            f"data.context is {config.data.context} tokens, but {shape.name} takes {shape.positions} at most "
            "(max_position_embeddings)"
        )
    half = config.measure.length - config.measure.length // 2
    if config.measure.rows > half:
        raise ValueError(
            f"measure.rows is {config.measure.rows}, but rows are taken from the second half of the longest of "
            f"measure.lengths, which has {half}"
        )
    if config.measure.chain_texts:
        chain_sites(config.measure.length)


def _check_methods(config, shape):
    """{method name: ``Trained``}; every setting of the sweep is looked at as well."""
    found = {}
    for method, _ in config.runs:
        if method.name not in found:
            found[method.name] = trained.count(shape, method, config.measure.targets, config.model.dtype)
            _check_method(method, method.label, found[method.name].shapes, config.model.dtype)
    for variation in config.variations:
        told = f"sweep of {variation.vary}, {variation.method.label}"
        _check_method(variation.method, told, found[variation.of].shapes, config.model.dtype)
    return found


def _check_method(method, told, shapes, dtype):
    if method.rank is None:
        return
    smallest = min(shapes, key=min)
    if method.rank > min(smallest):
        m, n = smallest
        raise ValueError(f"{told}: rank {method.rank} is larger than a target of {m}×{n} can have, {min(smallest)}")
    if method.kind == "mps":
        _check_chain(method, told, {n for _, n in shapes})
    elif method.init is not True:
        _check_init(method, told)
        if dtype == "bfloat16" and not method.keeps_base:
            raise ValueError(
                f"{told}: init {method.init!r} takes a part of the base's weights out of them, and of bfloat16 weights "
                "the update would be what rounding makes of that; take model.dtype=float32, or another init"
            )


def _check_chain(method, told, inputs):
    for n in sorted(inputs):
        sites = balanced_sites(n, method.cores)
        if sites[0] == 1:
            raise ValueError(
                f"{told}: {n} inputs of a target are no product of {method.cores} sites, but of "
                f"{' · '.join(map(str, prime_factors(n)))}; an MPS needs as many factors as cores"
            )
        most = max(largest_bonds(method.rank, sites, "last" if sites[-1] < sites[0] else "first"))
        if method.chi > most:
            raise ValueError(
                f"{told}: chi {method.chi} is more than the bonds between sites {' · '.join(map(str, sites))} can hold "
                f"with rank {method.rank}, {most}"
            )


def _check_init(method, told):
    """PEFT knows what it can start from; of a small layer it tells in no time."""
    import peft

    layer = torch.nn.Sequential(torch.nn.Linear(method.rank, method.rank, bias=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            options = {"target_modules": ["0"], "init_lora_weights": method.init}
            peft.get_peft_model(layer, peft.LoraConfig(r=method.rank, **options))
            if method.init in NEEDS_TEXT:
                raise ValueError("it starts from activations of a text, which a study does not pass to PEFT")
        except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .")
            raise ValueError(f"{told}: PEFT cannot make adapters of init {method.init!r} ({why})") from error


def _check_disk(folder, needed):
    there = _existing(folder)
    held = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder.is_dir() else 0
    missing = max(0, needed.total - held) * MARGIN
    free = shutil.disk_usage(there).free
    if free < missing:
        parts = ", ".join(f"{name.replace('_', ' ')} {_bytes(size)}" for name, size in needed.items() if size)
        raise ValueError(
            f"--out: {there} has {_bytes(free)} free, but the study writes up to {_bytes(missing)} ({parts}). Make "
            "room, choose another --out, or keep no checkpoints (training.save_every=null)"
        )


def _bytes(size):
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
