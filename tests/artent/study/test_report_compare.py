"""Studies side by side: curves over each other, verdicts, and the settings in which they differ."""

import re
from dataclasses import replace

import pytest
from artent.study.report import beside, compare, compare_runs, findings_in, summary_of
from artent.study.summary import Summary
from study import synthetic
from study.test_report import data_of, series


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("compare") / "study")


def test_comparison_lays_runs_beside_each_other(folder, tmp_path):
    other = replace(synthetic.Effects(), seeds=2, lora_dip=0.9, c=0.95, sweep=(), controls=())
    other = synthetic.write(tmp_path / "other", other)
    out = compare_runs([folder, other], tmp_path / "both.html")
    text = out.read_text()
    assert compare_runs([folder, other], tmp_path / "both") == tmp_path / "both" / "comparison.html"
    assert (tmp_path / "both" / "comparison.html").read_text() == text
    data = data_of(text)
    names = ["synthetic (study)", "synthetic (other)"]
    summaries = [summary_of(folder), summary_of(other)]
    exponents = {row["name"]: row["value"] for row in data["charts"]["exponents"]["rows"]}
    assert exponents == pytest.approx({n: s.fits["base"]["c"] for n, s in zip(names, summaries)}, rel=1e-4)
    depths = {row["name"]: row["value"] for row in data["charts"]["valley"]["rows"]}
    for name, s in zip(names, summaries):
        want = s.mean_last("lora-r4", "valley_depth")
        assert depths[f"LoRA r = 4: {name}"] == pytest.approx(want, rel=1e-4)
    assert set(series(data["families"]["profiles"]["charts"]["LoRA r = 16|W_V"])) == set(names)
    assert set(series(data["families"]["losses"]["charts"]["full FT|nats a byte"])) == set(names)
    differing = set(re.findall(r"<code>([\w.-]+)</code>", text))
    assert {"seeds", "controls", "sweep.lora-r16.rank"} <= differing
    assert "model.layers" not in differing
    for one, two in zip(findings_in(folder), findings_in(other)):
        if one.key == two.key == "external-law":
            cells = re.search(r"over T</th>(.*?)</tr>", text, re.DOTALL).group(1)
            assert [one.standing, two.standing] == re.findall(r"<span class='badge [\w-]+'>([^<]+)<", cells)
    with pytest.raises(ValueError, match="at least two folders"):
        compare_runs([folder], tmp_path / "one.html")


def test_settings_of_methods_and_sweeps_are_compared():
    """Learning rates and values of a sweep, methods by name; what a study lacks is told by the list of methods."""
    first, last = (Summary(synthetic.records(synthetic.Effects(seeds=1, controls=(), chain=False))) for _ in "ab")
    same = "the configurations are the same"
    assert same in beside.differences(["a", "b"], [first, last])
    *others, changed = last.config.methods
    methods = (*others, replace(changed, learning_rate=10 * changed.learning_rate))
    swept = next(sweep for sweep in last.config.sweep if sweep.vary == "rank")
    sweep = tuple(replace(each, values=(32,)) if each is swept else each for each in last.config.sweep)
    last.config = replace(last.config, methods=methods, sweep=sweep)
    table = beside.differences(["a", "b"], [first, last])
    rows = {
        key: re.findall(r"<td>([^<]+)</td>", row) for key, row in re.findall(r"<code>(.+?)</code>(.*?)</tr>", table)
    }
    rates = [f"{f * changed.learning_rate:g}" for f in (1, 10)]
    ranks = [", ".join(f"{v:g}" for v in values) + "; seeds 0" for values in (swept.values, (32,))]
    assert rows == {f"methods.{changed.name}.learning_rate": rates, f"sweep.{swept.of}.rank": ranks}
    last.config = replace(last.config, methods=tuple(others), sweep=())
    table = beside.differences(["a", "b"], [first, last])
    assert "<code>methods</code>" in table
    assert "methods." not in table


def test_losses_in_different_units_have_charts_of_their_own():
    small, large = (Summary(synthetic.records(synthetic.Effects(seeds=1, sweep=(), controls=()))) for _ in "ab")
    large.config = replace(large.config, model=replace(large.config.model, name="some/model"))
    losses = data_of(compare.render(["small", "large"], [small, large], [[], []]))["families"]["losses"]
    for unit, name in (("nats a byte", "small"), ("nats a token", "large")):
        chart = losses["charts"][f"full FT|{unit}"]
        assert list(series(chart)) == [name]
        assert chart["y"]["title"].endswith(unit)
    assert [control["key"] for control in losses["controls"]] == ["method", "unit"]
