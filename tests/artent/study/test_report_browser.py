"""The page in a real browser: it opens in silence, asks for nothing, and every control does what it says."""

import json
import re
from pathlib import Path

import pytest
from artent.study.report import compare_runs, write_report
from study import browser as browsers
from study import synthetic
from study.test_report_runs import diverged

if browsers.executable() is None:
    pytest.skip(f"needs one of {', '.join(browsers.NAMES)} on the path", allow_module_level=True)

CHECKS = Path(__file__).with_name("page_checks.js").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = synthetic.write(tmp_path_factory.mktemp("browser") / "study")
    write_report(folder, draw_figures=False)
    return folder


@pytest.fixture(scope="module")
def chrome(tmp_path_factory):
    chrome = browsers.Browser(tmp_path_factory.mktemp("profile"))
    yield chrome
    chrome.close()


@pytest.fixture
def page(chrome, folder):
    chrome.open(folder / "report.html")
    chrome.run(CHECKS)
    yield chrome
    assert chrome.errors == []


def ask(page, check, *arguments):
    """The answer of one of ``page_checks.js``."""
    return page.run(f"{check}({', '.join(map(json.dumps, arguments))})")


def data(page, path):
    return page.run(f"data.{path}")


def test_it_opens_in_silence_and_asks_for_nothing(page, folder):
    assert page.requests == [(folder / "report.html").resolve().as_uri()]
    assert ask(page, "emptyCharts") == 0
    assert page.run("document.querySelectorAll('svg .line').length") > 50


def test_marks_stand_where_the_numbers_are(page):
    """The scale is read off the axis, not off the code that draws."""
    for chart, name in (("overview-external", "base model"), ("overview-W_Q", "LoRA r = 4"), ("loss-new", "full FT")):
        charted = next(s for s in data(page, f"charts['{chart}'].series") if s["name"] == name)
        values = [v for _, v in charted["points"]]
        assert ask(page, "readLine", f"#chart-{chart}", name) == pytest.approx(values, abs=0.01)


def test_every_choice_draws_another_chart(page):
    """Each select of each family, by the keyboard, as a reader would."""
    names = page.run("[...document.querySelectorAll('[data-family]')].map(h => h.dataset.family)")
    assert {"rise", "residuals", "steps", "layers", "heads", "matched", "sweep", "mps"} <= set(names)
    for name in names:
        chart = f"#chart-{name}"
        for i, control in enumerate(data(page, f"families['{name}'].controls"), 1):
            if len(control["options"]) < 2:
                continue
            select = f"figure:has({chart}) label:nth-child({i}) select"
            before, at = ask(page, "drawnOf", chart), ask(page, "valueOf", select)
            page.focus(select)
            page.press("ArrowDown")
            assert ask(page, "valueOf", select) != at, (name, i)
            assert ask(page, "drawnOf", chart) != before, (name, i)


def test_the_explorer_shows_what_is_chosen(page):
    pick = "[data-explorer] [data-control={}]".format
    chart = "[data-explorer] .plot"

    def choose(control, value):
        options = page.run(f"[...document.querySelector('{pick(control)}').options].map(o => o.value)")
        page.focus(pick(control))
        page.press("Home", *["ArrowDown"] * options.index(value))
        assert ask(page, "valueOf", pick(control)) == value

    methods = ["full FT", "full FT of the targets", "LoRA r = 4", "LoRA r = 16", "MPS r = 16 (χ = 8)"]
    assert ask(page, "linesOf", chart) == methods
    seen = {ask(page, "drawnOf", chart)}
    for control, value in (("target", "W_V"), ("layer", "1"), ("method", "lora-r16"), ("seed", "2")):
        choose(control, value)
        now = ask(page, "drawnOf", chart)
        assert now not in seen
        seen.add(now)
    nulls = ["rank bound", "theory: LoRA line, Page's line", "random factors", "Haar: same singular values"]
    assert [name for name in ask(page, "linesOf", chart) if name] == [*nulls, "seed 2"]

    module = data(page, "explorer.modules['W_V|1']")
    own = module["methods"]["lora-r16"]
    profile, at = own["steps"][-1][own["seeds"].index(2)], module["cut"] - 1
    cells = page.run("[...document.querySelectorAll('[data-explorer] tbody td')].map(td => td.textContent)")
    assert cells[0] == f"{profile[at]:.2f}"
    assert cells[1].endswith(" of 16")
    assert cells[2] == f"{max(profile) - profile[at]:.2f}"

    page.focus(pick("step"))
    page.press("ArrowLeft")
    assert page.run("document.querySelector('[data-explorer] output').textContent") == "step 5"
    assert nulls[-1] not in ask(page, "linesOf", chart)  # of the last step alone
    assert ask(page, "drawnOf", chart) not in seen


def test_legends_switch_lines_and_nulls_by_pointer_and_keyboard(page):
    button = "[data-legend=overview] button[data-tag='{}']".format
    profiles, growth = "#chart-overview-W_Q", "#chart-overview-external"
    before = ask(page, "linesOf", profiles)
    assert "LoRA r = 4" in before
    assert not any("rank bound" in name for name in before)
    page.click(button("rank bound"))
    assert sum("rank bound" in name for name in ask(page, "linesOf", profiles)) == 5  # one a method
    pressed = f"document.querySelector({json.dumps(button('rank bound'))}).getAttribute('aria-pressed')"
    assert page.run(pressed) == "true"
    page.focus(button("LoRA r = 4"))
    page.press(" ")
    for chart in (profiles, growth):  # the panels are one figure
        assert not any("LoRA r = 4" in name for name in ask(page, "linesOf", chart))
    page.press("Enter")
    page.click(button("rank bound"))
    assert page.run(pressed) == "false"
    assert ask(page, "linesOf", profiles) == before


def test_the_pointer_reads_values(page):
    page.hover("#chart-overview-W_V svg", 0.99, 0.5)
    title, values = ask(page, "tipOf", "#chart-overview-W_V")
    charted = {s["name"]: s["points"][-1] for s in data(page, "charts['overview-W_V'].series") if not s.get("off")}
    assert title == f"bond {charted['full FT'][0]}"
    want = {name: value for name, (_, value) in charted.items()}
    assert {name: float(value) for name, value in values.items()} == pytest.approx(want, abs=6e-4)

    cells = data(page, "families.heads.charts['s_ext|base'].cells")
    page.hover("#chart-heads svg", 0.95, 0.2)
    title, values = ask(page, "tipOf", "#chart-heads")
    row, column = map(int, re.fullmatch(r"layer (\d), head (\d)", title).groups())
    assert column == synthetic.HEADS - 1
    assert float(values["Sext at T = 64, nats"]) == pytest.approx(cells[row][column], abs=6e-4)
    page.hover("h1")
    assert ask(page, "tipOf", "#chart-heads") is None


def test_arrow_keys_read_values(page):
    rows = data(page, "charts.valley.rows")
    page.focus("#chart-valley svg")
    page.press("ArrowDown", "ArrowDown", "ArrowDown")
    title, values = ask(page, "tipOf", "#chart-valley")
    assert title == rows[2]["name"]
    assert float(values["value"]) == pytest.approx(rows[2]["value"], abs=6e-4)
    assert float(values["random alike"]) == pytest.approx(rows[2]["null"], abs=6e-4)
    page.press("Escape")
    assert ask(page, "tipOf", "#chart-valley") is None
    points = next(s["points"] for s in data(page, "charts.growth.series") if s["name"] == "base model")
    page.focus("#chart-growth svg")
    page.press("End")
    title, values = ask(page, "tipOf", "#chart-growth")
    assert title == f"T = {points[-1][0]}"
    assert float(values["base model"]) == pytest.approx(points[-1][1], abs=6e-4)
    page.press("ArrowLeft")
    assert ask(page, "tipOf", "#chart-growth")[0] == f"T = {points[-2][0]}"


def test_the_table_of_verdicts_leads_to_the_sections(page):
    page.click(".verdicts a[href='#no-hair']")
    assert page.run("location.hash") == "#no-hair"
    assert abs(page.run("document.getElementById('no-hair').getBoundingClientRect().top")) < 100
    page.focus(".verdicts a")
    page.press("Tab", "Enter")
    assert page.run("location.hash") == "#valley"


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_it_fits_and_no_labels_cross(page, width):
    before = page.run("document.querySelector('#chart-overview-W_Q svg').getBoundingClientRect().width")
    page.size(width)
    found = ask(page, "layoutOf")
    assert found["width"] <= found["window"]
    assert found["least"][0] >= 10, found["least"]
    assert found["clipped"] == []
    assert found["crossed"] == []
    after = page.run("document.querySelector('#chart-overview-W_Q svg').getBoundingClientRect().width")
    assert (after == before) == (width == 1280)  # charts are drawn again at their new width


def test_dark_and_light_are_both_readable(page):
    line = "getComputedStyle(document.querySelector('.line')).stroke"
    colours = f"[getComputedStyle(document.body).backgroundColor, {line}]"
    seen = []
    for dark in (False, True):
        page.scheme(dark)
        page.settle()
        ratio, words = ask(page, "leastContrast")
        assert ratio >= 4.5, words
        seen.append(page.run(colours))
    assert all(a != b for a, b in zip(*seen))


def test_the_explorer_lives_with_a_seed_that_a_method_lacks(chrome, tmp_path):
    records = list(diverged(synthetic.records(synthetic.Effects(seeds=2, sweep=(), controls=())), "lora-r4", 1))
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    chrome.open(write_report(tmp_path, draw_figures=False), 390)
    chrome.run(CHECKS)
    heads = "[...document.querySelectorAll('[data-explorer] tbody th')].map(th => th.textContent)"
    assert len(chrome.run(heads)) == 5
    scroll = "document.querySelector('[data-explorer] .scroll')"
    assert chrome.run(f"{scroll}.scrollWidth <= {scroll}.clientWidth")  # on a phone as well
    chrome.focus("[data-explorer] [data-control=seed]")
    chrome.press("End")
    assert len(chrome.run(heads)) == 4
    assert "LoRA r = 4" not in ask(chrome, "linesOf", "[data-explorer] .plot")
    chrome.focus("[data-explorer] [data-control=method]")
    chrome.press("Home", "ArrowDown", "ArrowDown", "ArrowDown")
    assert ask(chrome, "valueOf", "[data-explorer] [data-control=method]") == "lora-r4"
    assert chrome.run(heads) == ask(chrome, "linesOf", "[data-explorer] .plot") == []
    assert chrome.errors == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_comparison_opens_alike(chrome, folder, tmp_path, width):
    other = synthetic.Effects(seeds=1, c=0.9, sweep=(), controls=(), chain=False)
    other = synthetic.write(tmp_path / "other", other)
    chrome.open(compare_runs([folder, other], tmp_path / "both.html"), width)
    chrome.run(CHECKS)
    assert len(chrome.requests) == 1
    found = ask(chrome, "layoutOf")
    assert found["width"] <= found["window"]
    assert found["crossed"] == []
    before = ask(chrome, "drawnOf", "#chart-profiles")
    chrome.focus("figure:has(#chart-profiles) select")
    chrome.press("ArrowDown")
    assert ask(chrome, "drawnOf", "#chart-profiles") != before
    chrome.focus("#chart-growth svg")
    chrome.press("ArrowRight")
    assert set(ask(chrome, "tipOf", "#chart-growth")[1]) == {"synthetic (study)", "synthetic (other)"}
    assert chrome.errors == []
