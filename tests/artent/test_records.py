import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from artent.records import RecordWriter, read_records

RECORDS = [
    {"kind": "loss", "step": 0, "loss": 2.5},
    {"kind": "profile", "entropy": [0.1, 0.2], "note": "β\n→"},
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "results.jsonl"


def test_what_is_written_is_read(path):
    with RecordWriter(path) as writer:
        writer.write(RECORDS[0])
        assert read_records(path) == RECORDS[:1]  # readable while the writer is open
        writer.write(RECORDS[1])
    with RecordWriter(path) as writer:
        writer.write(*RECORDS)
    assert read_records(path) == RECORDS * 2
    assert len(path.read_bytes().split(b"\n")) == 5


def test_tensors_arrays_and_infinities(path):
    with RecordWriter(path) as writer:
        writer.write(
            {
                "t": torch.tensor(1.5),
                "a": np.arange(2),
                "x": np.float32(0.5),
                "n": math.nan,
                "alpha": math.inf,
            }
        )
    (record,) = read_records(path)
    assert math.isnan(record.pop("n"))
    assert record == {"t": 1.5, "a": [0, 1], "x": 0.5, "alpha": math.inf}


def test_every_truncation_keeps_the_whole_lines(path):
    with RecordWriter(path) as writer:
        writer.write(*RECORDS)
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for length in [*range(0, len(content), 7), first - 1, first, len(content) - 1, len(content)]:
        path.write_bytes(content[:length])
        whole = (length >= first - 1) + (length >= len(content) - 1)
        assert read_records(path) == RECORDS[:whole]
        with RecordWriter(path) as writer:
            writer.write({"step": 9})
        assert read_records(path) == [*RECORDS[:whole], {"step": 9}]


def test_a_failed_write_leaves_no_half_line(path):
    with RecordWriter(path) as writer:
        writer.write(RECORDS[0])
        with pytest.raises(TypeError, match="object"):
            writer.write(RECORDS[1], {"x": object()})
        raw = writer._file
        writer._file = _FullDisk(raw)
        with pytest.raises(OSError, match="full"):
            writer.write(RECORDS[1])
        writer._file = raw
        writer.write(RECORDS[1])
    assert read_records(path) == RECORDS


class _FullDisk:
    """A raw file that takes five bytes and then fails."""

    def __init__(self, raw):
        self.raw, self.calls = raw, 0
        self.fileno = raw.fileno

    def write(self, data):
        self.calls += 1
        if self.calls > 1:
            raise OSError("disk full")
        return self.raw.write(bytes(data[:5]))


@pytest.mark.parametrize("content", [b"{}\nnot json\n{}\n", b"{}\n[1]\n", b"a letter", b"{} {}\n"])
def test_another_kind_of_file_is_refused_and_left_alone(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    for use in (read_records, RecordWriter):
        with pytest.raises(ValueError, match=r"line \d: expected one JSON object"):
            use(path)
    assert path.read_bytes() == content


def test_bad_arguments(path):
    with RecordWriter(path) as writer, pytest.raises(TypeError, match="must be a dict"):
        writer.write([1, 2])
    with pytest.raises(FileNotFoundError):
        read_records(path.with_name("none.jsonl"))


def test_killed_while_writing(path):
    code = (
        "import sys; from artent.records import RecordWriter; w = RecordWriter(sys.argv[1])\n"
        "i = 0\nwhile True: w.write({'i': i, 'x': [i] * 2000}); i += 1"
    )
    for _ in range(2):  # each run goes on in the file that the kill before it left
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
        before = len(read_records(path)) if path.exists() else 0
        deadline = time.monotonic() + 30
        while not path.exists() or path.stat().st_size < (before + 20) * 4000:
            assert time.monotonic() < deadline, "the writing process wrote nothing"
            time.sleep(0.002)
        child.kill()
        child.wait()
        records = read_records(path)
        assert len(records) > before
        assert all(record["x"] == [record["i"]] * 2000 for record in records)
