"""Measurements on disk: one JSON object a line, so that being killed costs at most the line being written.

A record is handed to the operating system whole and synchronised before ``write`` returns. What a kill leaves
half written is the last line only: the reader leaves it out, and the next writer cuts it off. Numbers without
a JSON form (NaN, ±∞) are written as Python's ``json`` writes them and come back as they were.
"""

import json
import os
from pathlib import Path


class RecordWriter:
    """Appends records to ``path`` (a ``.jsonl`` file; it and its folder are made when missing).

    One writer a file at a time. Use it as a context manager, or call :meth:`close`.

    Raises:
        ValueError: the file holds something other than records (nothing is cut from such a file).
    """

    def __init__(self, path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 (held open until close)
        try:
            self._mend()
        except BaseException:
            self._file.close()
            raise

    def write(self, *records):
        """Append dictionaries: all, or none if it raises; a kill may leave the first few.

        Tensor and NumPy values are written as numbers and lists.

        Raises:
            TypeError: a record is not a dictionary, or holds something that JSON has no form for.
        """
        lines = bytearray()
        for record in records:
            if not isinstance(record, dict):
                raise TypeError(f"a record must be a dict of JSON-able values, not {type(record).__name__}")
            lines += json.dumps(record, default=_plain).encode() + b"\n"
        start = os.fstat(self._file.fileno()).st_size
        try:
            rest = memoryview(lines)
            while rest:  # a raw write may take less than it was given
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException:  # a full disk or Ctrl-C: half a line must not be in the way of the next one
            os.ftruncate(self._file.fileno(), start)
            raise

    def close(self):
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def _mend(self):
        """Cut off a half-written last line, or end a whole one that lost only its newline."""
        content = self.path.read_bytes()
        records, kept = _parse(content, self.path)
        if kept < len(content):
            os.ftruncate(self._file.fileno(), kept)
        elif records and not content.endswith(b"\n"):
            self._file.write(b"\n")


def read_records(path):
    """The records in ``path``, a list of dictionaries. A half-written last line is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line other than a half-written last one is not a JSON object.
    """
    return _parse(Path(path).read_bytes(), path)[0]


def _parse(content, path):
    """(records, number of bytes that hold them): all bytes but those of a half-written last line."""
    records, end = [], 0
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        try:
            record = json.loads(line) if line.strip() else None
            if not isinstance(record, dict | None):
                raise ValueError(f"a {type(record).__name__}, not an object")
        except ValueError as error:
            if not line.endswith(b"\n") and line.startswith(b"{"):
                break
            raise ValueError(
                f"{path}, line {number}: expected one JSON object a line, as RecordWriter writes them "
                f"({error}). Likely cause: the file was edited by hand, is another file, or had two writers"
            ) from None
        if record is not None:
            records.append(record)
        end += len(line)
    return records, end


def _plain(value):
    if hasattr(value, "tolist"):  # tensors, NumPy scalars and arrays
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a record holds a {type(value).__name__} ({value!r}), which JSON has no form for")
