"""Data sets in files: JSONL, JSON, Parquet, Arrow and plain text, one or a folder of them, read row by row.

A table here has ``columns``, a length, ``rows(indices)`` (dictionaries, in the order asked for) and ``where(index)``,
by which a fault is named. Only the rows asked for are made into Python objects: a data set of a million rows is
sampled without being read whole where its format allows it.
"""

from __future__ import annotations

import bisect
import json
import re
from pathlib import Path

__all__ = ["KINDS", "ArrowTable", "missing", "open_files"]

SPLITS = ("train", "test", "validation", "valid", "dev", "eval")
BESIDE = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # what `datasets` adds


def missing(package, why):
    return ImportError(f"{package} is not installed, which is needed to read {why}: pip install 'artent[study]'")


def open_files(path, split, passage):
    """The table in ``path``, a file or a folder of files of one kind. ``passage``: see :class:`TextFile`.

    In a folder whose files are named for splits (``train-00000.parquet``), only those of ``split`` count. Raises
    FileNotFoundError, ValueError for what is not a data set.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"data.name: there is no file or folder {path}. Expected one of {', '.join(KINDS)}, a folder of them, "
            "python-source, python-reference, tulu3, openthoughts3, or owner/name of a data set on the hub"
        )
    files = [path] if path.is_file() else _folder(path, split)
    kind = KINDS.get(files[0].suffix.lower())
    if kind is None:
        raise ValueError(f"data.name: {path} must end in one of {', '.join(KINDS)}; its format is told by its name")
    tables = [kind(file, passage) if kind is TextFile else kind(file) for file in files]
    return tables[0] if len(tables) == 1 else Joined(tables)


def _folder(path, split):
    there = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    files = [p for p in there if p.suffix.lower() in KINDS and p.name not in BESIDE]
    if not files:
        raise ValueError(
            f"data.name: the folder {path} holds no file ending in {', '.join(KINDS)}"
            + (f" (it holds {', '.join(p.name for p in there[:5])})" if there else " (it is empty)")
        )
    kinds = sorted({p.suffix.lower() for p in files})
    if len(kinds) > 1:
        raise ValueError(
            f"data.name: the folder {path} mixes files of {', '.join(kinds)}; name one file, or a folder of one kind"
        )
    splits = {file: set(re.split(r"[-_.]", file.stem.lower())).intersection(SPLITS) for file in files}
    if not any(splits.values()):
        return files
    chosen = [file for file in files if split in splits[file]]
    if not chosen:
        raise ValueError(
            f"data.split: no file in {path} is named for {split!r}; there are "
            f"{', '.join(sorted(set().union(*splits.values())))}"
        )
    return chosen


def _parts(parts, sizes, indices):
    """(part, its first index, those of ``indices`` in it), for the parts that have any."""
    order, first, at = sorted(indices), 0, 0
    for part, size in zip(parts, sizes):
        until = bisect.bisect_left(order, first + size, at)
        if until > at:
            yield part, first, order[at:until]
        first, at = first + size, until


class Joined:
    """Tables one after another."""

    def __init__(self, tables):
        self.tables = [table for table in tables if len(table)] or tables[:1]
        self.columns = self.tables[0].columns

    def __len__(self):
        return sum(map(len, self.tables))

    def rows(self, indices):
        found = {}
        for table, first, here in _parts(self.tables, map(len, self.tables), indices):
            found.update(zip(here, table.rows([at - first for at in here])))
        return [found[at] for at in indices]

    def where(self, index):
        for table in self.tables:
            if index < len(table):
                return table.where(index)
            index -= len(table)
        raise IndexError(index)


class JsonLines:
    """A JSON object a line. Where lines begin is found once; only lines asked for are parsed."""

    def __init__(self, path):
        self.path, self.begins, at = path, [], 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    self.begins.append((number, at))
                at += len(line)
        self.columns = list(self.rows([0])[0]) if self.begins else []

    def __len__(self):
        return len(self.begins)

    def rows(self, indices):
        found = {}
        with open(self.path, "rb") as file:
            for index in sorted(indices):
                number, at = self.begins[index]
                file.seek(at)
                found[index] = self._parse(file.readline(), number)
        return [found[index] for index in indices]

    def _parse(self, line, number):
        try:
            row = json.loads(line)
        except ValueError as fault:  # JSONDecodeError and UnicodeDecodeError are both
            raise ValueError(f"data.name: {self.path} is not JSON at line {number}: {fault}") from None
        if not isinstance(row, dict):
            raise ValueError(f"data.name: line {number} of {self.path} is {_kind(row)}, expected an object")
        return row

    def where(self, index):
        return f"line {self.begins[index][0]} of {self.path}"


class JsonArray:
    """A JSON array of objects, in memory."""

    def __init__(self, path, data):
        self.path, self.data = path, data
        for number, row in enumerate(data, 1):
            if not isinstance(row, dict):
                raise ValueError(f"data.name: entry {number} of {path} is {_kind(row)}, expected an object")
        self.columns = list(data[0]) if data else []

    def __len__(self):
        return len(self.data)

    def rows(self, indices):
        return [self.data[index] for index in indices]

    def where(self, index):
        return f"entry {index + 1} of {self.path}"


def open_json(path):
    """A ``.json`` file: an array of objects, or, as often under that name, an object a line."""
    with open(path, "rb") as file:
        first = next((line for line in file if line.strip()), b"").lstrip()
    if not first.startswith(b"["):
        return JsonLines(path)
    try:
        return JsonArray(path, json.loads(path.read_bytes()))
    except json.JSONDecodeError as fault:
        raise ValueError(f"data.name: {path} is not JSON at line {fault.lineno}: {fault.msg}") from None
    except UnicodeDecodeError as fault:
        raise ValueError(f"data.name: {path} is not text in UTF-8: {fault}") from None


class ArrowTable:
    """A pyarrow table (mapped from disk where it can be), or a data set of the ``datasets`` library."""

    def __init__(self, path, table):
        self.path, self.table, self.columns = path, table, list(table.column_names)

    def __len__(self):
        return len(self.table)

    def rows(self, indices):
        if hasattr(self.table, "slice"):  # pyarrow: take() would copy, and overflows for 2 GB of strings
            return [self.table.slice(index, 1).to_pylist()[0] for index in indices]
        return [self.table[index] for index in indices]

    def where(self, index):
        return f"row {index + 1} of {self.path}"


def open_arrow(path):
    """An Arrow file, of the streaming format (which ``datasets`` writes) or of the file format."""
    try:
        import pyarrow
    except ImportError:
        raise missing("pyarrow", f"{path}") from None
    for reader in (pyarrow.ipc.open_stream, pyarrow.ipc.open_file):
        try:
            return ArrowTable(path, reader(pyarrow.memory_map(str(path))).read_all())
        except (pyarrow.ArrowException, OSError, ValueError) as fault:
            reason = fault
    raise ValueError(f"data.name: {path} is not an Arrow file, or it is cut short: {reason}")


class ParquetFile:
    """A Parquet file. Of its row groups only those with rows asked for are read, one at a time."""

    def __init__(self, path):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise missing("pyarrow", f"{path}") from None
        self.path, self.faults = path, (pyarrow.ArrowException, OSError, ValueError)
        try:
            self.file = pyarrow.parquet.ParquetFile(path)
        except self.faults as fault:
            raise self._broken(fault) from None
        self.columns = self.file.schema_arrow.names

    def __len__(self):
        return self.file.metadata.num_rows

    def rows(self, indices):
        groups = range(self.file.num_row_groups)
        sizes, found = [self.file.metadata.row_group(group).num_rows for group in groups], {}
        for group, first, here in _parts(groups, sizes, indices):
            try:
                table = self.file.read_row_group(group)
            except self.faults as fault:
                raise self._broken(fault) from None
            found.update((at, table.slice(at - first, 1).to_pylist()[0]) for at in here)
        return [found[at] for at in indices]

    def _broken(self, fault):
        return ValueError(f"data.name: {self.path} is not a Parquet file, or it is cut short: {fault}")

    def where(self, index):
        return f"row {index + 1} of {self.path}"


class TextFile:
    """Plain text as rows of one column, ``text``: passages of about ``passage`` characters, ended at a blank line.

    A book in one file must have rows that can be held out; lines that go on without a blank one are cut at twice that.
    """

    columns = ("text",)

    def __init__(self, path, passage):
        self.path, self.passages, lines, size = path, [], [], 0
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as fault:
            raise ValueError(f"data.name: {path} is not text in UTF-8: {fault}") from None
        for line in text.splitlines(keepends=True):
            lines.append(line)
            size += len(line)
            if size >= 2 * passage or (size >= passage and not line.strip()):
                self._add("".join(lines), 2 * passage)
                lines, size = [], 0
        self._add("".join(lines), 2 * passage)

    def _add(self, text, most):
        pieces = (text[at : at + most].strip("\n") for at in range(0, len(text), most))
        self.passages += [piece for piece in pieces if piece.strip()]

    def __len__(self):
        return len(self.passages)

    def rows(self, indices):
        return [{"text": self.passages[index]} for index in indices]

    def where(self, index):
        return f"passage {index + 1} of {self.path}"


def _kind(value):
    return {list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number")


KINDS = {".jsonl": JsonLines, ".json": open_json, ".parquet": ParquetFile, ".arrow": open_arrow, ".txt": TextFile}
