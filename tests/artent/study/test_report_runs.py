"""The report of runs as they may end: what moved attention as verdicts judge it, runs that broke or diverged."""

import json
from itertools import combinations

import pytest
import torch
from artent.study.analysis import sensitivity
from artent.study.findings import findings_of
from artent.study.report import page, write_report
from artent.study.summary import Summary
from study import synthetic
from study.test_report import data_of, series


@pytest.fixture(scope="module")
def summary():
    return Summary(synthetic.records())


@pytest.fixture(scope="module")
def data(summary):
    return data_of(page.render(summary, []))


def test_shifts_of_attention_are_what_the_verdicts_judge(data, summary):
    """Against sums over heads, and against the analysis: figure and verdict say the same."""
    margin = summary.config.judge.margin
    steps = data["charts"]["attention-steps"]
    found = sensitivity.step_shifts(summary)
    for m in summary.methods:
        drawn = series(steps)[m.label]
        runs = [summary.attention[(m.name, seed)] for seed in range(4)]
        for step, value in drawn.items():
            moved = torch.stack([(run[step].s_ext - run[0].s_ext).mean(1) for run in runs])
            assert value == pytest.approx(moved.square().mean().sqrt().item(), rel=1e-4, abs=1e-9)
        assert drawn[max(drawn)] == pytest.approx(found[m.name][0].mean, rel=1e-4)
    assert [(level["y"], steps["y"]["min"]) for level in steps["levels"]] == [(margin, 0)]
    swept = data["families"]["sweep-attention"]["charts"]
    labels = {m.name: m.label for m in summary.methods}
    shifts = sensitivity.attention_shifts(summary)
    assert {shift.vary for shift in shifts} == set(swept)
    for shift in shifts:
        chart = swept[shift.vary]
        drawn, names = series(chart)[labels[shift.of]], chart["x"].get("names", {})
        values = {{"True": "default"}.get(str(v), str(v)) if names else v: t.mean for v, t in shift.shifts.items()}
        drawn = {names.get(str(x), x): value for x, value in drawn.items()}
        assert {x: drawn[x] for x in values} == pytest.approx(values, rel=1e-4, abs=1e-9)
        assert [v for x, v in drawn.items() if x not in values] == [0]  # the method's own setting
        assert [level["y"] for level in chart["levels"]] == [margin]


def test_the_line_of_the_volume_law_is_the_verdicts(data, summary):
    refs = {ref["label"]: ref["x"] for ref in data["charts"]["exponents"]["refs"]}
    window = next(fit["c"] for name, fit in summary.fits.items() if str(name).startswith("local window"))
    assert refs == pytest.approx({"area law": 0, "volume law at these T": min(1, window)}, rel=1e-4)


def test_ratios_are_those_of_the_text(data, summary):
    """Both medians of the chart, against the finding's numbers and the records' own means over texts."""
    rows = {row["name"]: row for row in data["charts"]["ratios"]["rows"]}
    numbers = next(f for f in findings_of(summary) if f.key == "no-hair").numbers
    assert rows["attention, r_ext"]["value"] == pytest.approx(numbers["r of attention, median over heads"], rel=1e-4)
    assert rows["updates, r_int"]["value"] == pytest.approx(numbers["r of updates, median over modules"], rel=1e-4)
    heads = {run: summary.s_ext[run][-1].mean(1).flatten() for run in summary.runs}
    pairs = {True: [], False: []}
    for a, b in combinations(heads, 2):
        if a[0] == b[0] or a[1] != b[1]:
            pairs[a[0] == b[0]].append((heads[a] - heads[b]).square())
    between, within = (torch.stack(pairs[same]).mean(0).sqrt() for same in (False, True))
    assert rows["attention, r_ext"]["points"] == pytest.approx((between / within).tolist(), rel=1e-4)


def test_runs_of_the_sweep_that_learned_nothing_are_in_the_losses_alone():
    records = synthetic.records(synthetic.Effects(seeds=4, controls=(), chain=False))
    rates = [r for r in records if r["kind"] == "sweep" and r["vary"] == "learning_rate"]
    broken, label = rates[-1], "LoRA r = 16"
    broken |= {"start": 3.0, "loss": 3.2}
    charts = {name: f["charts"] for name, f in data_of(page.render(Summary(records), []))["families"].items()}
    assert broken["value"] in series(charts["sweep-loss"]["learning_rate"])[label]
    for name in ("sweep-valley", "sweep-attention"):
        drawn = series(charts[name]["learning_rate"])[label]
        assert broken["value"] not in drawn
        assert len(drawn) == len(rates)  # the method's own, and the others


def diverged(records, method, seed):
    """The records with that run's as of one whose loss was no number: nothing of its end is there."""
    for record in records:
        if (record.get("method"), record.get("seed")) != (method, seed) or "setting" in record:
            yield record
        elif record["kind"] == "done":
            at = {"method": method, "seed": seed}
            yield from ({**at, "kind": "loss", "text": "new", "step": 10, "loss": float("nan")},)
            yield from ({**at, "kind": "diverged"}, record)
        elif record["kind"] in ("start", "parameters") or record.get("step") == 0:
            yield record


def test_a_seed_that_diverged_leaves_the_others_drawn(tmp_path):
    """As on a real run: a ``diverged`` record, no growth after it; and a method that was added later is unfinished."""
    folder = synthetic.write(tmp_path / "study", synthetic.Effects(samples=False))
    records = [json.loads(text) for text in (folder / "results.jsonl").read_text().splitlines()]
    kept = list(diverged(records, "lora-r4", 2))
    begun = [r for r in kept if not (r.get("method") == "mps-r16" and r["kind"] == "done" and r.get("seed", 0) > 0)]
    (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in begun))
    data = data_of(write_report(folder, draw_figures=False).read_text())
    explored = data["explorer"]["modules"]["W_Q|0"]["methods"]
    assert explored["lora-r4"]["seeds"] == [0, 1, 3]
    assert explored["mps-r16"]["seeds"] == [0]
    losses = {row["name"]: len(row["points"]) for row in data["charts"]["losses"]["rows"]}
    assert (losses["LoRA r = 4"], losses["LoRA r = 16"], losses["MPS r = 16 (χ = 8)"]) == (3, 4, 1)
    assert all(len(one["points"]) > 1 for one in data["charts"]["attention-steps"]["series"])
