"""The same data set in every format gives the same corpus, and what is no data set is told before any training."""

import json
import sys
from functools import partial

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from artent.study.data import load_data
from data_sets import config, openthoughts, tulu, write_lines


def parquet(path, rows, group=7):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


def arrow(path, rows, stream=True):
    table = pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=9)


def saved(path, rows, splits=False):
    data = datasets.Dataset.from_list(rows)
    (datasets.DatasetDict({"train": data, "test": data.select([0])}) if splits else data).save_to_disk(str(path))


def shards(path, rows, write, suffix):
    """A folder as the hub has it: shards of a split, another split, and files that are no data."""
    (path / "data").mkdir(parents=True)
    (path / "README.md").write_text("---\nlicense: odc-by\n---\n")
    (path / "dataset_infos.json").write_text("{}")
    for part, own in enumerate((rows[:15], rows[15:])):
        write(path / "data" / f"train-0000{part}-of-00002{suffix}", own)
    write(path / "data" / f"test-00000-of-00001{suffix}", rows[:1])


FORMATS = {
    "rows.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "lines.json": write_lines,
    "blank.jsonl": lambda path, rows: path.write_text("\n" + "\n\r\n".join(map(json.dumps, rows))),
    "rows.parquet": parquet,
    "stream.arrow": arrow,
    "file.arrow": partial(arrow, stream=False),
    "saved": saved,
    "saved-splits": partial(saved, splits=True),
    "shards-parquet": partial(shards, write=parquet, suffix=".parquet"),
    "shards-jsonl": partial(shards, write=write_lines, suffix=".jsonl"),
}


@pytest.mark.parametrize("make_rows", [tulu, openthoughts])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_same_rows(name, make_rows, tmp_path):
    rows = make_rows(40)
    FORMATS[name](tmp_path / name, rows)
    write_lines(tmp_path / "rows.jsonl", rows)
    found, expected = (load_data(config(tmp_path / file, samples=25)) for file in (name, "rows.jsonl"))
    assert found.fingerprint == expected.fingerprint
    assert found.told | {"sentence": ""} == expected.told | {"sentence": ""}
    assert found.told["rows_read"] == 40


@pytest.mark.parametrize(
    ("name", "repository", "make_rows"),
    [
        ("tulu3", "allenai/tulu-3-sft-mixture", tulu),
        ("openthoughts3", "open-thoughts/OpenThoughts3-1.2M", openthoughts),
        ("some/one", "some/one", tulu),
    ],
)
def test_of_a_million_rows_on_the_hub_only_the_samples_are_read(name, repository, make_rows, monkeypatch):
    rows, read = make_rows(50), []

    class Million:
        column_names = tuple(rows[0])

        def __len__(self):
            return 1_000_000

        def __getitem__(self, index):
            read.append(index)
            return rows[index % 50]

    def load_dataset(path, *, split):
        assert (path, split) == (repository, "train")
        return Million()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = load_data(config(name, samples=30))
    assert len(read) == len(set(read)) == corpus.told["rows_used"] == 30
    assert corpus.told["rows_read"] == 1_000_000


def test_a_hub_out_of_reach_is_told(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"data.name: allenai/tulu-3-sft-mixture cannot be had .*give its folder"):
        load_data(config("tulu3"))


def test_a_missing_library_is_told(monkeypatch, tmp_path):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'artent\[study\]'"):
        load_data(config("tulu3"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pyarrow .*pip install 'artent\[study\]'"):
        load_data(config(tmp_path / "a.parquet"))


def test_plain_files_are_passages_that_hold_all_of_the_text(tmp_path):
    book = "".join(f"Line {at} of a book.\n" + "\n" * (at % 7 == 0) for at in range(400)) + "x" * 3000
    (tmp_path / "book.txt").write_text(book, encoding="utf-8-sig")
    corpus = load_data(config(tmp_path / "book.txt", context=64, packing=False))
    ids = [token for row in corpus.train + corpus.held_out for token in row["input_ids"].tolist() if token]
    assert sorted(bytes(ids).replace(b"\n", b"")) == sorted(book.replace("\n", "").encode())
    assert corpus.told["rows_used"] > 20
    assert corpus.told["held_out_rows"] == round(0.05 * corpus.told["rows_used"])


GOOD = tulu(4)
MESSAGE = {"role": "user", "content": "q"}


def lines(*rows):
    return ("rows.jsonl", "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (("rows.jsonl", ""), "is empty: it has no rows"),
        (("rows.json", "[]"), "is empty: it has no rows"),
        (("rows.txt", "\n \n"), "is empty: it has no rows"),
        (lines(*GOOD, "", "{'messages': 1}"), "rows.jsonl is not JSON at line 6"),
        (("rows.json", '[\n{"a": 1},\n{"a": }]'), "rows.json is not JSON at line 3"),
        (("rows.json", '[{"text": "a"}, 3]'), "entry 2 of .*rows.json is a number, expected an object"),
        (lines(*GOOD, "[1]"), "line 5 of .*rows.jsonl is a list, expected an object"),
        (lines({"id": 1, "source": "x"}), r"has the columns id, source; expected messages"),
        (lines(*GOOD, {"id": 1}), r"line 5 of .*rows.jsonl has no 'messages'; it has id"),
        (lines(*GOOD, {"messages": "hello"}), r"'messages' of line 5 of .* must be a list .*type str"),
        (lines(*GOOD, {"messages": ["hello"]}), r"a message of line 5 of .*must have role and content.*'hello'"),
        (lines(*GOOD, {"messages": [{"text": "q"}]}), r"line 5 of .* has the keys text; expected role and content"),
        (lines(*GOOD, {"messages": [{**MESSAGE, "role": "narrator"}]}), r"unknown role 'narrator' in line 5 of"),
        (lines(*GOOD, {"messages": [{**MESSAGE, "role": [1]}]}), r"unknown role '\[1\]' in line 5 of"),
        (lines(*GOOD, {"messages": [{**MESSAGE, "content": 7}]}), r"'content' of a message of line 5 .*type int"),
        (lines({"text": "a"}, {"id": 7}), r"line 2 of .* has no 'text'; it has id"),
        (lines({"text": "a"}, {"text": 7}), r"'text' of line 2 of .* must be a string.*type int"),
        (lines(*[{"messages": [MESSAGE]}] * 3), r"no row of .* can be used: 3 skipped \(no answer\)"),
        (lines({"text": "a"}), "1 usable rows, 1 of them distinct"),
        (lines({"text": "a"}, {"text": "a"}), "2 usable rows, 1 of them distinct"),
        (("rows.parquet", "PAR1 and no more"), "rows.parquet is not a Parquet file, or it is cut short"),
        (("rows.arrow", "no arrow"), "rows.arrow is not an Arrow file, or it is cut short"),
        (("rows.csv", "a,b"), r"rows.csv must end in one of .jsonl, .json, .parquet, .arrow, .txt"),
        (("rows.txt", b"\xff\xfe\x00a"), "rows.txt is not text in UTF-8"),
        (("rows.jsonl", b'{"text": "\xff"}'), "rows.jsonl is not JSON at line 1"),
    ],
)
def test_files_that_are_no_data_set(file, words, tmp_path):
    name, content = file
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words):
        load_data(config(tmp_path / name, context=16))


def test_parquet_cut_short_within_its_data(tmp_path):
    parquet(tmp_path / "rows.parquet", tulu(40))
    whole = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "hole.parquet").write_bytes(whole[:50] + b"\xff" * (len(whole) // 2) + whole[50 + len(whole) // 2 :])
    for name in ("cut", "hole"):
        with pytest.raises(ValueError, match=f"{name}.parquet is not a Parquet file, or it is cut short"):
            load_data(config(tmp_path / f"{name}.parquet"))


def test_folders_and_names_that_are_no_data_set(tmp_path):
    for folder, files in {
        "empty": (),
        "other": ("a.csv",),
        "mixed": ("a.json", "a.txt"),
        "held": ("test.jsonl",),
    }.items():
        (tmp_path / folder).mkdir()
        for file in files:
            (tmp_path / folder / file).write_text("")
    saved(tmp_path / "saved", tulu(3), splits=True)
    saved(tmp_path / "broken", tulu(3))
    next((tmp_path / "broken").glob("*.arrow")).write_bytes(b"nothing")
    names = {
        tmp_path / "empty": r"holds no file ending in .* \(it is empty\)",
        tmp_path / "other": r"holds no file ending in .* \(it holds a.csv\)",
        tmp_path / "mixed": "mixes files of .json, .txt",
        tmp_path / "held": "data.split: no file in .* is named for 'train'; there are test",
        tmp_path / "broken": "the data set saved in .* cannot be read",
        "python-sorce": r"'python-sorce' is no file, .* Did you mean python-source\?",
    }
    for name, words in names.items():
        with pytest.raises(ValueError, match=words):
            load_data(config(name))
    with pytest.raises(ValueError, match=r"data.split: .*saved has no split 'valid'; it has train, test"):
        load_data(config(tmp_path / "saved", split="valid"))
    for name in (tmp_path / "none.jsonl", "some/where/else", "~/no-such-data", "rows.parquet"):
        with pytest.raises(FileNotFoundError, match=r"data.name: there is no file or folder"):
            load_data(config(name))
