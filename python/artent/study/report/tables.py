"""All numbers of a study as tables: CSV, and Parquet where pyarrow is, with a ``README.md`` on their columns."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from pathlib import Path

from artent.study.report.rows import TABLES

__all__ = ["write_tables"]


def write_tables(summary, findings, folder):
    """Write every table that has a row into ``folder``, and ``README.md``. Files are whole or absent.

    Values that were not measured are empty (CSV) or null (Parquet). Returns ``{name: number of rows}``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parquet, counts = importlib.util.find_spec("pyarrow") is not None, {}
    for name, table in TABLES.items():
        rows = list(table.rows(summary, findings))
        if not rows:
            for suffix in ("csv", "parquet"):  # what an earlier report left
                (folder / f"{name}.{suffix}").unlink(missing_ok=True)
            continue
        columns = [column for column, _ in table.columns]
        _whole(folder / f"{name}.csv", _csv, columns, rows)
        if parquet:
            _whole(folder / f"{name}.parquet", _parquet, columns, rows)
        counts[name] = len(rows)
    _whole(folder / "README.md", Path.write_text, _readme(counts, parquet), "utf-8")
    return counts


def _whole(path, write, *what):
    part = path.with_name(path.name + ".part")
    write(part, *what)
    os.replace(part, path)


def _csv(path, columns, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)


def _cell(value):
    """As CSV holds it: nothing for what was not measured, JSON for what has parts."""
    if value is None or value != value:
        return ""
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else value


def _parquet(path, columns, rows):
    import pyarrow as pa
    from pyarrow import parquet

    def column(name):
        values = [row.get(name) for row in rows]
        if any(isinstance(v, (list, tuple, dict)) for v in values):
            return [None if v is None else json.dumps(v) for v in values]
        if any(isinstance(v, str) for v in values):  # a setting's value may be a number or a word
            return [None if v is None else str(v) for v in values]
        return [None if v is None or v != v else v for v in values]

    parquet.write_table(pa.table({name: column(name) for name in columns}), path)


def _readme(counts, parquet):
    """What the tables hold, column by column."""
    lines = ["# The numbers of this study", ""]
    kinds = "CSV and Parquet" if parquet else "CSV"
    lines += [
        f"Written by `artent report` from `results.jsonl`, as {kinds}: one entity a row. Entropies are in nats.",
        "",
    ]
    for name, count in counts.items():
        table = TABLES[name]
        lines += [f"## {name} ({count:,} rows)", "", table.about, "", "| column | meaning |", "|---|---|"]
        lines += [f"| `{column}` | {meaning} |" for column, meaning in table.columns]
        lines.append("")
    return "\n".join(lines)
