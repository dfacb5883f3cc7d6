"""The smoke study as a user runs it: its records, its report, and going on after a kill."""

import json
import math
import re
import shutil

import pytest
from artent.cli import main
from artent.records import read_records
from artent.study import figures
from artent.study.config import CONFIGS
from artent.study.report import findings_of, render, write_report
from artent.study.store import BASE, current_records, stage_of
from artent.study.summary import Summary

NAMES = ("full-ft", "lora-r2", "mps-r2")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "smoke"
    assert main(["study", "--config", "smoke", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def records(study):
    return read_records(study / "results.jsonl")


def stages(records, kind):
    return [stage_of(r) for r in records if r["kind"] == kind]


def test_every_stage_is_recorded_once(records):
    wanted = [(BASE, 0), *((name, seed) for seed in (0, 1) for name in NAMES)]
    wanted += [(name, 0, factor) for name in NAMES for factor in CONFIGS["smoke"].sweep]
    assert stages(records, "start") == stages(records, "done") == wanted
    assert records[0]["kind"] == "setup"
    assert {"torch", "transformers", "peft", "python", "artent"} <= records[0]["versions"].keys()


def test_measurements_cover_modules_steps_and_lengths(records):
    summary = Summary(records)
    for run in summary.runs:
        assert len(summary.profiles[run]) == 4  # W_Q and W_V of two layers
        assert all(max(steps) == summary.config.tune_steps for steps in summary.profiles[run].values())
        assert [step for step, _ in summary.losses[run]["new"]] == [0, 2, 4]
        assert [step for step, _ in summary.over_steps[run]] == [0, 2, 4]
        assert summary.s_ext[run].shape == (3, 2, 4, 4)  # lengths, layers, texts, heads
    assert set(summary.fits) == {"base", "untrained", *summary.runs, *summary.growth_nulls}
    assert len(summary.growth_nulls) == 3


def test_adapters_respect_their_rank_bound(records):
    excesses = Summary(records).bound_excesses()
    assert len(excesses) == 2 * 2 * 4 * 2  # methods, seeds, modules, steps
    assert max(excesses) < 1e-6


def test_the_chain_of_an_mps_narrows_its_bound_and_its_null(records):
    """r = χ = 2 on sites (4, 8): at the bond behind the first site no more than ln χ, where LoRA may have ln 8."""
    summary = Summary(records)
    run, lora = ("mps-r2", 0), ("lora-r2", 0)
    for module, null in summary.nulls[run].items():
        at = summary.last(run, module).cut - 1 + 2
        assert null["bound"][at] == pytest.approx(math.log(2))
        assert summary.nulls[lora][module]["bound"][at] == pytest.approx(math.log(8))
        assert null["gaussian"][at] < math.log(2) < summary.nulls[lora][module]["gaussian"][at]
    S, bound = summary.core_bond("mps-r2")
    assert 0 < S < bound == pytest.approx(math.log(2))
    assert summary.core_bond("lora-r2") is None


def test_the_sweep_holds_the_runs_own_rate_and_the_others(records):
    summary = Summary(records)
    for method in summary.methods:
        factors = (*CONFIGS["smoke"].sweep, 1.0)
        assert set(summary.swept[method.name]) == {method.learning_rate * factor for factor in factors}
        own = summary.swept[method.name][method.learning_rate]
        assert own == summary.losses[(method.name, 0)]["new"][-1][1]
        assert len(set(summary.swept[method.name].values())) == 3
    kinds = [r["kind"] for r in records if "factor" in r]
    assert set(kinds) == {"start", "sweep", "done"}  # the loss, and no measurement beside it


def test_parameters_are_told(study, records):
    counts = Summary(records).parameters
    assert counts["lora-r2"] - counts["mps-r2"] == 4 * (2 * 32 - (2 * 4 * 2 + 2 * 8))  # A alone differs
    assert f"{counts['mps-r2']:,}" in (study / "report.html").read_text()


def test_data_order_and_adapter_follow_the_seed(records):
    losses = Summary(records).losses
    for method in NAMES:
        assert losses[(method, 0)]["new"][0] == losses[(method, 1)]["new"][0]  # one base model
        assert losses[(method, 0)]["new"][-1] != losses[(method, 1)]["new"][-1]


def test_report_needs_nothing_but_itself(study):
    page = (study / "report.html").read_text()
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {
        "https://arxiv.org/abs/2601.06788",
        "http://www.w3.org/2000/svg",
    }
    assert not re.search(r"<(img|iframe|link[^>]+stylesheet)|@import|\bsrc=|\burl\(|\bfetch\(|\$[a-z_]+\b", page)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))
    assert set(re.findall(r'data-chart="([\w-]+)"', page)) == set(data["charts"])
    assert "prefers-color-scheme" in page
    assert 'name="viewport"' in page


def test_report_tells_its_findings_and_draws_every_chart(study, records):
    page = (study / "report.html").read_text()
    summary = Summary(records)
    for found in findings_of(summary):
        assert found.claim.replace("'", "&#x27;") in page
    assert "not enough data: 2 seeds a method" in page
    drawn = {path.stem for path in (study / "figures").glob("*.png")}
    assert drawn == {*figures.charts(summary), *(f"profile-{name}" for name in NAMES)}
    assert {"sweep", "ratios"} <= drawn
    for label in summary.labels.values():
        assert label in page[page.index('class="lead"') : page.index("</p>", page.index('class="lead"'))]
        assert all(label in {s["name"] for s in chart["series"]} for chart in in_methods(figures.charts(summary)))


def in_methods(charts):
    """The charts with a line a method."""
    return [charts[name] for name in ("growth", "loss-new", "loss-old", "steps-cut", "steps-valley", "sweep")]


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_a_cut_study_is_reported_as_far_as_it_goes(study, tmp_path, share):
    lines = (study / "results.jsonl").read_bytes()
    sweep = lines.index(b'"factor"')
    (tmp_path / "results.jsonl").write_bytes(lines[: int(share * sweep)])
    summary = Summary(read_records(tmp_path / "results.jsonl"))
    missing = 6 - len(summary.runs)
    assert 0 < missing < 6
    page = render(summary, figures.charts(summary))
    assert f"{missing} of 6 fine-tunings are still missing" in page
    assert "6 of 6 runs of the learning-rate sweep are still missing" in page
    assert "sweep" not in figures.charts(summary)


def test_a_killed_study_goes_on_and_ends_alike(study, records, tmp_path):
    """Cut anywhere in the file is what a kill leaves. Here: in the middle of the last fine-tuning."""
    killed = tmp_path / "killed"
    shutil.copytree(study, killed)
    content = (killed / "results.jsonl").read_bytes()
    start, done = (content.rindex(b'"mps-r2", "seed": 1, "kind": "%s"' % kind) for kind in (b"start", b"done"))
    (killed / "results.jsonl").write_bytes(content[: (start + done) // 2])
    weights = (killed / "base.safetensors").stat().st_mtime_ns

    assert main(["study", "--config", "smoke", "--out", str(killed), "--resume"]) == 0

    after = read_records(killed / "results.jsonl")
    assert (killed / "base.safetensors").stat().st_mtime_ns == weights
    run, swept = stages(records, "start")[:7], stages(records, "start")[7:]
    assert stages(after, "start") == [*run, ("mps-r2", 1), *swept]
    assert stages(after, "done") == stages(records, "done")

    def measured(these):
        skipped = ("setup", "finished", "done")
        return [
            {k: v for k, v in r.items() if k != "seconds"} for r in current_records(these) if r["kind"] not in skipped
        ]

    assert measured(after) == measured(records)


def test_a_finished_study_resumes_to_nothing(study, tmp_path):
    finished = tmp_path / "finished"
    shutil.copytree(study, finished)
    before = stages(read_records(finished / "results.jsonl"), "start")
    assert main(["study", "--config", "smoke", "--out", str(finished), "--resume"]) == 0
    assert stages(read_records(finished / "results.jsonl"), "start") == before


def test_command_line_tells_what_to_do(study, tmp_path, capsys):
    for arguments, words in (
        (["study", "--config", "smoke", "--out", str(study)], "Give --resume"),
        (["study", "--config", "big", "--out", str(tmp_path / "x")], "config must be one of quick, smoke"),
        (
            ["study", "--config", "smoke", "--set", "layers=0", "--out", str(tmp_path / "x")],
            "layers must be at least 1",
        ),
        (["report", str(tmp_path)], "holds no results.jsonl"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_report_without_enough_to_tell(study, records, tmp_path):
    for last, words in ((("base", 0), "no finished fine-tuning"), (None, "no finished pretraining")):
        end = next((i for i, r in enumerate(records) if r["kind"] == "done" and (r["method"], r["seed"]) == last), 0)
        with pytest.raises(ValueError, match=words):
            Summary(records[: end + 1])


def test_report_command_prints_the_page(study, capsys):
    assert main(["report", str(study)]) == 0
    *claims, last = capsys.readouterr().out.strip().splitlines()
    assert last == f"Report: {study / 'report.html'}"
    assert len(claims) == 11
    assert all(claim.startswith("- ") and claim.endswith(")") for claim in claims)
    assert write_report(study, draw_figures=False) == study / "report.html"
