"""The report of a study: its page's numbers against the records, what is escaped, what is missing, tables, figures."""

import csv
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from artent.records import read_records
from artent.study.config import Method
from artent.study.report import draw, findings_in, page, summary_of, write_report
from artent.study.report.tables import write_tables
from artent.study.report.view import View, matrix_of, module_label
from artent.study.summary import Summary
from study import synthetic, synthetic_values

HOSTILE = "</script><b onload='x()'>$title & \"q\" <!--"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished study with everything in it, reported without figures."""
    folder = synthetic.write(tmp_path_factory.mktemp("report") / "study")
    assert write_report(folder, draw_figures=False) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def summary(folder):
    return summary_of(folder)


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))


@pytest.fixture(scope="module")
def data(folder):
    return data_of((folder / "report.html").read_text())


def series(chart):
    return {s["name"]: dict(map(tuple, s["points"])) for s in chart["series"]}


def test_the_overview_holds_means_over_layers_of_the_records(data, summary):
    """Against sums over the records themselves."""
    records = [r for r in read_records(summary.folder / "results.jsonl") if r["kind"] == "profile"]
    last = max(r["step"] for r in records)
    for method in summary.methods:
        rows = [
            r["entropy"]
            for r in records
            if r["method"] == method.name and "setting" not in r and r["step"] == last and "q_proj" in r["module"]
        ]
        assert len(rows) == 4 * synthetic.LAYERS  # seeds
        want = torch.tensor(rows, dtype=torch.float64).mean(0)
        drawn = series(data["charts"]["overview-W_Q"])[method.label]
        assert list(drawn.values()) == pytest.approx(want.tolist(), rel=1e-4)
    growth = series(data["charts"]["overview-external"])
    s_ext = torch.stack([summary.s_ext[("lora-r16", seed)] for seed in range(4)])
    assert list(growth["LoRA r = 16"].values()) == pytest.approx(s_ext.mean((0, 2, 3, 4)).tolist(), rel=1e-4)
    assert list(growth["base model"]) == list(synthetic.LENGTHS)


def test_charts_of_updates_hold_the_summarys_numbers(data, summary):
    charts = data["charts"]
    rows = {row["name"]: row for row in charts["valley"]["rows"]}
    for m in summary.methods:
        assert rows[m.label]["value"] == pytest.approx(summary.mean_last(m.name, "valley_depth"), rel=1e-4, abs=1e-9)
        assert rows[m.label]["null"] == pytest.approx(summary.null_depth(m.name)[0], rel=1e-4, abs=1e-9)
        assert len(rows[m.label]["points"]) == 4 * len(synthetic.MODULES)
    ranks = {row["name"]: row["value"] for row in charts["effective-rank"]["rows"]}
    assert ranks["LoRA r = 4"] == pytest.approx(summary.mean_last("lora-r4", "effective_rank"), rel=1e-4)
    losses = {row["name"]: row["points"] for row in charts["losses"]["rows"]}
    assert losses["LoRA r = 4"] == pytest.approx(summary.final_losses("lora-r4"), rel=1e-4)


def test_sweeps_stand_beside_the_run_that_they_vary(data, summary):
    family = data["families"]["sweep"]["charts"]
    loss = series(family["loss|rank"])["LoRA r = 16"]
    own = summary.losses[("lora-r16", 0)]["new"][-1][1]
    swept = {run.value: run.loss for run in summary.sweeps if run.vary == "rank"}
    assert loss == pytest.approx({**swept, 16: own}, rel=1e-4)
    depth = series(family["valley_depth|alpha"])["LoRA r = 16"]
    first = [summary.last(("lora-r16", 0), module).valley_depth.item() for module in synthetic.MODULES]
    assert depth[32] == pytest.approx(sum(first) / len(first), rel=1e-4)  # α = 2r, the run that is not of the sweep
    external = series(family["s_ext|learning_rate"])["LoRA r = 16"]
    # the same length and texts as the runs beside it: the last of the probe
    assert external[0.01] == pytest.approx(summary.s_ext[("lora-r16", 0)][-1][:, -2:].mean().item(), rel=1e-4)
    names = family["loss|init"]["x"]["names"]
    assert sorted(names.values()) == ["default", "orthogonal", "pissa"]


def test_heads_and_explorer_hold_every_module_and_head(data, summary):
    cells = data["families"]["heads"]["charts"]["s_ext|base"]["cells"]
    assert torch.tensor(cells) == pytest.approx(summary.s_ext["base"][-1].mean(1).numpy(), rel=1e-4)
    change = data["families"]["heads"]["charts"]["change|lora-r4-seed1"]["cells"]
    want = (summary.s_ext[("lora-r4", 1)][-1] - summary.s_ext["base"][-1]).mean(1)
    assert torch.tensor(change) == pytest.approx(want.numpy(), abs=1e-4)
    explorer = data["explorer"]
    assert set(explorer["modules"]) == {f"{m}|{layer}" for m in ("W_Q", "W_V") for layer in range(synthetic.LAYERS)}
    profiles = summary.profiles[("mps-r16", 2)]["model.layers.1.self_attn.v_proj"]
    own = explorer["modules"]["W_V|1"]["methods"]["mps-r16"]
    for at, step in enumerate(explorer["steps"]):
        assert own["steps"][at][own["seeds"].index(2)] == pytest.approx(profiles[step].entropy.tolist(), rel=1e-4)


class Outline(HTMLParser):
    """Elements with an id, the targets of links, the verdicts of articles."""

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.article, self.verdicts = [], [], None, {}
        self.badge = False

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"][1:]] if attrs.get("href", "").startswith("#") else []
        self.article = attrs["id"] if tag == "article" else self.article
        self.badge = tag == "span" and "badge" in attrs.get("class", "")

    def handle_data(self, text):
        if self.badge and self.article and self.article not in self.verdicts:
            self.verdicts[self.article] = text
        self.badge = False


def test_every_finding_has_its_section_and_its_link(folder):
    outline = Outline()
    outline.feed((folder / "report.html").read_text())
    found = findings_in(folder)
    assert outline.verdicts == {f.key: f.standing for f in found}
    assert len(set(outline.ids)) == len(outline.ids)
    assert set(outline.links) == {f.key for f in found}
    assert {"volume-law", "valley", "external-law", "no-hair", "mps-loss"} <= outline.verdicts.keys()


def test_every_chart_has_its_place_and_the_page_needs_nothing_else(folder, data):
    text = (folder / "report.html").read_text()
    assert set(re.findall(r"data-chart='([^']+)'", text)) == set(data["charts"])
    assert set(re.findall(r"data-family='([^']+)'", text)) == set(data["families"])
    allowed = {"https://arxiv.org/abs/2601.06788", "http://www.w3.org/2000/svg"}
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) == allowed
    assert not re.search(r"<(img|iframe|link[^>]+stylesheet|script src)|@import|\burl\(|\bfetch\(", text)
    assert "\\u003c" not in json.dumps(data)  # escaped in the page alone


def test_names_from_configurations_stay_text():
    """A name may hold anything: nothing of it becomes markup, mathematics or a placeholder."""
    effects = synthetic.Effects(seeds=2, sweep=(), controls=())
    records = synthetic.records(effects)
    records[0]["config"] |= {"name": HOSTILE}
    records[0]["texts"]["new"] = {"name": HOSTILE, "sentence": f"{HOSTILE}: 3 rows", "fingerprint": "1"}
    for record in records:
        if "module" in record:
            record["module"] = record["module"].replace("v_proj", "<i>v")
    summary = Summary(records)
    text = page.render(summary, [])
    assert "<b onload" not in text
    assert "<i>" not in text.replace('"<i>', "")
    assert text.count("</script>") == 2
    assert "&lt;/script&gt;&lt;b onload=&#x27;x()&#x27;&gt;$title &amp; &quot;q&quot;" in text
    assert "overview-<i>v" in data_of(text)["charts"]


BARE = {"seeds": 1, "sweep": (), "controls": (), "chain": False, "step_records": False}


@pytest.mark.parametrize(
    "changed",
    [
        {"chain": False},
        {"step_records": False},
        {"sweep": (), "controls": ()},
        {"seeds": 1},
        {"methods": (Method("full-ft", 1e-3),), "sweep": (), "controls": ()},
        {"methods": (Method("mps", 1e-2, rank=16, chi=8),), "sweep": (), "controls": ()},
        BARE,
    ],
    ids=lambda changed: "-".join(changed),
)
def test_what_was_not_measured_is_not_drawn(changed):
    summary = Summary(synthetic.records(synthetic.Effects(**{"seeds": 2, **changed})))
    data = data_of(page.render(summary, []))
    assert ("chain" in data["charts"]) == changed.get("chain", True)
    assert ("sweep" in data["families"]) == (changed.get("sweep") is None)
    assert ("attention-steps" in data["charts"]) == changed.get("step_records", True)
    assert ("ratios" in data["charts"]) == ("seeds" not in changed and "methods" not in changed)


def test_a_bare_study_is_reported_whole(tmp_path):
    folder = synthetic.write(tmp_path / "study", synthetic.Effects(**BARE))
    assert write_report(folder, draw_figures=False).exists()
    assert not (folder / "tables" / "chain.csv").exists()


def test_what_is_not_finite_is_left_out(tmp_path):
    """A diverged run, and texts that are too short: gaps, no numbers made of them."""
    records = synthetic.records(synthetic.Effects(seeds=2, controls=()))
    for record in records:
        if record.get("method") == "lora-r4" and record["kind"] == "loss" and record["step"] > 0:
            record["loss"] = float("nan")
        if record.get("method") == "mps-r16" and record["kind"] == "growth":
            record["s_ext"][-1] = [[[None] * synthetic.HEADS] * synthetic.TEXTS] * synthetic.LAYERS
    summary = Summary(records)
    charts = data_of(page.render(summary, []))["charts"]
    assert "LoRA r = 4" not in {row["name"] for row in charts["losses"]["rows"]}
    assert list(series(charts["loss-new"])["LoRA r = 4"].values()) == [3.0, None, None]
    assert list(series(charts["growth"])["MPS r = 16 (χ = 8)"].values())[-1] is None
    write_tables(summary, [], tmp_path)
    losses = [r["loss"] for r in rows_of(tmp_path / "losses.csv") if r["method"] == "lora-r4" and r["text"] == "new"]
    assert losses == ["3.0", "", ""] * 2


def test_a_fault_comes_before_everything(tmp_path):
    folder = synthetic.write(tmp_path / "study", synthetic.Effects(**{**BARE, "beyond_bound": 0.5}))
    text = write_report(folder, draw_figures=False).read_text()
    faults = [f for f in findings_in(folder) if f.standing == "fault"]
    assert [f.key for f in faults] == ["rank-bound"]
    assert text.index("role='alert'") < text.index("class='overview'")


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_study_cut_short_says_what_is_missing(folder, tmp_path, share):
    lines = (folder / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines[: int(share * len(lines))]))
    summary = summary_of(tmp_path)
    wanted = [(m.name, seed) for m, seed in summary.config.runs]
    missing = [run for run in wanted if run not in summary.seconds]
    text = write_report(tmp_path, draw_figures=False).read_text()
    assert (f"{len(missing)} of {len(wanted)} fine-tunings" in text) == bool(missing)
    assert "Still missing" in text
    assert "Still missing" not in (folder / "report.html").read_text()


def test_a_folder_without_a_study_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run: .* holds no results\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(ValueError, match="no finished pretraining"):
        findings_in(tmp_path)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_all_numbers_and_explain_their_columns(folder, summary):
    tables = {path.stem: rows_of(path) for path in (folder / "tables").glob("*.csv")}
    readme = (folder / "tables" / "README.md").read_text()
    for name, rows in tables.items():
        section = readme.split(f"## {name} (")[1].split("\n## ")[0]
        assert section.startswith(f"{len(rows):,} rows)")
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(rows[0])
    entropy = {
        (r["method"], r["seed"], r["setting"], r["module"], r["step"], r["bond"]): float(r["entropy"])
        for r in tables["profiles"]
    }
    profiles = [
        ((stage[0], str(stage[1]), stage[2] if len(stage) > 2 else "", module, str(step), str(bond)), S)
        for stage, modules in summary.profiles.items()
        for module, steps in modules.items()
        for step, p in steps.items()
        for bond, S in zip(p.bonds, p.entropy.tolist())
    ]
    assert entropy == dict(profiles)
    assert len(tables["profiles"]) == len(profiles)
    per_text = [float(r["s_ext"]) for r in tables["growth"] if r["model"] == "base" and r["length"] == "64"]
    assert per_text == pytest.approx(summary.s_ext["base"][-1].mean((0, 2)).tolist(), rel=1e-12)
    assert {r["key"]: r["standing"] for r in tables["findings"]} == {f.key: f.standing for f in findings_in(folder)}
    assert [float(r["loss"]) for r in tables["sweep"]] == [run.loss for run in summary.sweeps]
    assert len(tables["controls"]) == len(summary.controls) * synthetic.LAYERS * synthetic.HEADS
    assert len(tables["chain"]) == len(summary.chains) * synthetic.LAYERS * synthetic.HEADS * 11


def test_parquet_and_csv_are_alike(folder):
    parquet = pytest.importorskip("pyarrow.parquet")
    for path in (folder / "tables").glob("*.csv"):
        table = parquet.read_table(path.with_suffix(".parquet")).to_pylist()
        for plain, typed in zip(rows_of(path), table, strict=True):
            assert {k: "" if v is None else str(v) for k, v in typed.items()} == plain


def test_a_table_that_lost_its_rows_does_not_stay_behind(tmp_path):
    whole, bare = (Summary(synthetic.records(synthetic.Effects(seeds=1, chain=chain))) for chain in (True, False))
    assert "chain" in write_tables(whole, [], tmp_path)
    assert "chain" not in write_tables(bare, [], tmp_path)
    assert not list(tmp_path.glob("chain.*"))
    assert not list(tmp_path.glob("*.part"))


def test_figures_are_png_and_svg_of_the_pages_charts(tmp_path, summary):
    """Three of them, one a kind, and the overview with its three panels."""
    import matplotlib

    matplotlib.use("Agg")
    view = View(summary)
    charts, families = page.charts_of(view)
    some = {name: chart for name, chart in charts.items() if chart.get("group") or name == "valley"}
    draw.draw(some, {"heads": families["heads"]}, view.palette, tmp_path)
    names = {"overview", "valley", "heads-s_ext-base"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    for name in names:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()
    svg = (tmp_path / "valley.svg").read_text()
    assert all(view.palette[style["color"]][0] in svg for style in view.style.values())


def test_colours_differ_and_stand_out_from_their_page():
    """WCAG's contrast of graphics, 3 to 1, for many ranks at once."""
    ranks = (2, 4, 8, 16, 32, 64, 128, 256)
    methods = (Method("full-ft", 1e-3), Method("full-ft", 1e-3, train="targets"))
    methods += tuple(Method("lora", 1e-2, rank=r) for r in ranks)
    methods += tuple(Method("mps", 1e-2, rank=r, chi=8) for r in ranks[3:])
    base = Summary(synthetic.records(synthetic.Effects(seeds=1, sweep=(), controls=(), chain=False)))
    base.methods = methods
    palette = View(base).palette
    for i, ground in enumerate(("#ffffff", "#1b1f24")):
        shades = [both[i] for both in palette.values()]
        assert len(set(shades)) == len(shades)
        assert min(contrast(shade, ground) for shade in shades) >= 2.5


def contrast(a, b):
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def test_modules_are_named_as_matrices():
    assert matrix_of("model.layers.3.self_attn.q_proj") == ("W_Q", 3)
    assert matrix_of("lm_head") == ("lm_head", None)
    assert module_label("transformer.h.11.mlp.gate_proj") == "layer 11, gate_proj"


def test_a_large_study_stays_small_enough(monkeypatch):
    """A page of 4 layers and 8 heads in bytes a layer, a head: 16 layers of 32 heads stay far below 8 MB."""
    sizes = []
    for layers, heads in ((2, 4), (4, 16)):
        modules = [f"model.layers.{layer}.self_attn.{p}" for layer in range(layers) for p in ("q_proj", "v_proj")]
        for name, value in {"LAYERS": layers, "HEADS": heads, "MODULES": modules}.items():
            for part in (synthetic, synthetic_values):
                monkeypatch.setattr(part, name, value, raising=False)
        summary = Summary(synthetic.records(synthetic.Effects(sweep=(), controls=())))
        assert summary.s_ext["base"].shape[1::2] == (layers, heads)
        assert len(summary.profiles[("lora-r4", 3)]) == 2 * layers
        sizes.append(len(page.render(summary, [])))
    # What grows does so with layers (profiles) and layers × heads (heads): bounded by the steeper of the two.
    assert sizes[0] + (sizes[1] - sizes[0]) * (16 * 32 - 8) / (64 - 8) < 8e6
