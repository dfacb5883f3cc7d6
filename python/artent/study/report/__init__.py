"""The report of a study: a page that needs nothing but itself, figures, tables; several studies side by side."""

from __future__ import annotations

from pathlib import Path

from artent.records import read_records

__all__ = ["compare_runs", "findings_in", "summary_of", "write_report"]


def write_report(folder, draw_figures=True):
    """Read ``results.jsonl`` in ``folder``; write ``report.html``, ``tables/`` and ``figures/`` there.

    A study that was cut short is reported as far as its finished stages go. Every file is whole or absent.

    Returns the page's path. Raises FileNotFoundError without records, ValueError without a finished pretraining or any
    finished fine-tuning.
    """
    from artent.study.report import draw, page, tables
    from artent.study.report.view import View

    folder = Path(folder)
    summary = summary_of(folder)
    found, view = _findings(summary), View(summary)
    charts, families = page.charts_of(view)
    path = page.write(folder / "report.html", page.render(summary, found, view, (charts, families)))
    tables.write_tables(summary, found, folder / "tables")
    if draw_figures:
        draw.draw(charts, families, view.palette, folder / "figures")
    return path


def findings_in(folder):
    """The findings of the study in ``folder``, as on its page. Raises as ``write_report`` does."""
    return _findings(summary_of(folder))


def compare_runs(folders, out):
    """One page, ``out``, with several studies beside each other; see ``artent.study.report.compare``."""
    from artent.study.report.compare import compare_runs

    return compare_runs(folders, out)


def summary_of(folder):
    """The Summary of the records in ``folder``. Raises FileNotFoundError where there are none."""
    from artent.study.summary import Summary

    records = Path(folder) / "results.jsonl"
    if not records.exists():
        raise FileNotFoundError(f"run: {folder} holds no results.jsonl; it should be the --out folder of a study")
    return Summary(read_records(records), Path(folder))


def _findings(summary):
    from artent.study.findings import findings_of

    return findings_of(summary)
