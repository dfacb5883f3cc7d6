"""The folder of ``artent profile --out``: records as modules finish, then Parquet and figures, whole or not there."""

import importlib.util
import json
import os
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path

from artent.commands.options import records_in, something_else
from artent.commands.profile_numbers import SHARES, numbers, rank_keeping
from artent.commands.profile_table import by_number, kind_of, layer_of, short_names
from artent.entanglement import EntanglementProfile
from artent.records import RecordWriter

_AGREE = ("artent", "targets", "options", "inputs")  # what a run must share with the one that it goes on with
_END = 1 << 16  # bytes of a file that its fingerprint reads


class Results:
    """Records of one run in ``out``; with ``resume``, of the run that stands there already.

    Opening it writes ``run``, the header, so a folder that can't be written is told before anything is measured.

    Attributes:
        earlier: records of modules by name, from before.
        done: whether the run had come to its end.

    Raises ValueError for a folder in use, of another command or of a run that was asked something else.
    """

    def __init__(self, out, run: dict, resume: bool):
        self.folder = Path(out)
        try:
            records = records_in(out)
            if records:
                self._check(records, json.loads(json.dumps(run)), resume)
            figures = self.folder / "figures"
            if figures.exists() and not figures.is_dir():
                raise ValueError(f"--out: {figures} is a file, expected a folder")
            self._writer = RecordWriter(self.folder / "results.jsonl")
        except OSError as error:
            raise ValueError(f"--out: {error.filename or out} can't be written ({error.strerror})") from None
        self.earlier = {r["module"]: r for r in records if r["kind"] in ("profile", "unchanged")}
        self.done = any(r["kind"] == "done" for r in records)
        try:
            if not records:
                self.write(run)
        except OSError as error:
            self.close()
            raise ValueError(f"--out: {self.folder} can't be written ({error.strerror})") from None

    def write(self, record: dict):
        self._writer.write(record)

    def close(self):
        self._writer.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def _check(self, records, run, resume):
        there = records[0]
        if there.get("kind") != "run" or there.get("command") != "profile":
            raise something_else(self.folder)
        if not resume:
            raise ValueError(
                f"--out: {self.folder / 'results.jsonl'} holds a run already. Give --resume to go on with it, or "
                "another --out"
            )
        if disagree := list(_differences({k: there.get(k) for k in _AGREE}, {k: run[k] for k in _AGREE})):
            raise ValueError(
                f"--resume: {self.folder} holds a run that disagrees with this one: {'; '.join(disagree)}. Resume "
                "with what it was begun with, or choose another --out"
            )


def record_of(measured) -> dict:
    """The record of a module: everything in its profile, and the scalars that follow from it."""
    head = {"kind": "profile", "module": measured.name, "shape": list(measured.shape)}
    if measured.failed is not None:
        return {**head, "kind": "failed", "reason": measured.failed, "seconds": measured.seconds}
    if measured.profile is None:
        return {**head, "kind": "unchanged", "seconds": measured.seconds}
    return {**head, **scalars(measured.profile), **measured.profile.to_dict(), "seconds": measured.seconds}


def scalars(profile: EntanglementProfile) -> dict:
    """What the table shows, as numbers: value, certain bounds and standard error of each."""
    told = {}
    for name, number in numbers(profile).items():
        told |= {name: number.value, f"{name}_bounds": [number.low, number.high], f"{name}_stderr": number.stderr}
    return told | {f"rank_for_{share * 100:.0f}": list(rank_keeping(profile, share)) for share in SHARES}


def fingerprint(path) -> dict | None:
    """{file: [bytes, time of change in ns, CRC of its end]} of what lies in a folder, or of one file."""
    if path is None:
        return None
    path = Path(path)
    files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("adapter_config.json")]
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns, _crc_of_end(file)] for file in sorted(files)}


def _crc_of_end(file: Path) -> int:
    """Of the last tensors: files written in the same tick of the clock differ there."""
    with open(file, "rb") as opened:
        opened.seek(max(0, file.stat().st_size - _END))
        return zlib.crc32(opened.read())


def write_parquet(folder: Path, records: list[dict]) -> Path | None:
    """profiles.parquet, a row a module; None, with a word on standard error, where pyarrow is missing."""
    if importlib.util.find_spec("pyarrow") is None:
        print("artent profile: profiles.parquet needs pyarrow: pip install artent[parquet]", file=sys.stderr)
        return None
    import pyarrow
    import pyarrow.parquet

    rows = []
    for r in records:
        (rows_of, columns_of), bounds = r["sites"], {k: v for k, v in r.items() if k.endswith("_bounds")}
        pairs = bounds | {k: v for k, v in r.items() if k.startswith("rank_for_")}
        flat = {f"{k.removesuffix('_bounds')}_{end}": v[i] for k, v in pairs.items() for i, end in _ENDS}
        plain = {k: v for k, v in r.items() if k not in pairs and k not in ("kind", "sites", "shape", "alpha")}
        where = {"kind": kind_of(r["module"]), "layer": layer_of(r["module"])}
        sides = {"rows": r["shape"][0], "columns": r["shape"][1], "row_sites": rows_of, "column_sites": columns_of}
        rows.append({**where, **sides, **plain, **flat, "alpha": float(r["alpha"])})
    table = pyarrow.Table.from_pylist(rows)
    fields = []
    for field in table.schema:  # columns without any value would fit no other run's
        empty = pyarrow.float64() if field.name == "log_base" else pyarrow.int64()
        fields.append(field.with_type(empty) if pyarrow.types.is_null(field.type) else field)
    path = folder / "profiles.parquet"
    with whole(path) as part:
        pyarrow.parquet.write_table(table.cast(pyarrow.schema(fields)), part)
    return path


_ENDS = ((0, "lower"), (1, "upper"))


def draw(folder: Path, profiles: dict[str, EntanglementProfile], plots) -> list[Path]:
    """figures/: a picture of the profiles of each kind of module, and the effective rank by layer."""
    figures, groups = folder / "figures", {}
    figures.mkdir(parents=True, exist_ok=True)
    for name in sorted(profiles, key=by_number):
        p = profiles[name]
        groups.setdefault((kind_of(name), p.sites, p.rank), {})[name] = p
    axes = {}
    for (kind, _, rank), group in groups.items():
        m, n = next(iter(group.values())).shape
        alone = sum(key[0] == kind for key in groups) == 1
        label = kind if alone else f"{kind}-{m}x{n}" + (f"-r{rank}" if rank is not None else "")
        _, shown = short_names(list(group))
        shown = {name: f"layer {short}" if short.isdecimal() else short for name, short in shown.items()}
        axes[f"profile-{label}"] = lambda group=group, kind=kind, shown=shown: plots.profiles(
            {shown[name]: p for name, p in group.items()}, title=kind
        )
    layers = {name: p for name, p in profiles.items() if layer_of(name) is not None}
    if layers:
        axes["effective-rank"] = lambda: plots.effective_ranks(
            [(kind_of(name), layer_of(name), p) for name, p in layers.items()]
        )
    made = []
    for name, picture in axes.items():
        path = figures / f"{''.join(c if c.isalnum() or c in '._-' else '_' for c in name)}.png"
        with whole(path) as part:
            plots.save(picture(), part)
        made.append(path)
    return made


@contextmanager
def whole(path: Path):
    """A path to write to, which takes its place when it is written: there is never half a file."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _differences(there, now, name=""):
    """What differs between two nested dictionaries, in words."""
    if isinstance(there, dict) and isinstance(now, dict):
        for key in sorted(there.keys() | now.keys()):
            yield from _differences(there.get(key), now.get(key), f"{name} {key}".strip())
    elif there != now:
        if name.startswith("inputs"):
            what = "was added" if there is None else "is gone" if now is None else "has changed since"
            yield f"{name.removeprefix('inputs ')} {what}"
        else:
            yield f"{name.removeprefix('options ')} ({there!r} there, {now!r} now)"
