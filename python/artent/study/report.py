"""The report of a study: one HTML file that needs nothing else, and the same charts as PNG files."""

from __future__ import annotations

import html
import json
from importlib.resources import files
from math import inf, isfinite
from pathlib import Path
from string import Template

import torch

from artent.records import read_records
from artent.study import figures, findings, nohair
from artent.study.explorer import profile_explorer
from artent.study.summary import Summary

__all__ = ["render", "write_report"]

PAPER = "https://arxiv.org/abs/2601.06788"


def write_report(folder, draw_figures=True):
    """Read ``results.jsonl`` in ``folder``, write ``report.html`` and ``figures/*.png`` there; returns the page's path.

    A study that was cut short is reported as far as its finished stages go. Raises FileNotFoundError without
    records, ValueError without a finished pretraining or any finished fine-tuning.
    """
    folder = Path(folder)
    summary = _summary(folder)
    charts = figures.charts(summary)
    page = folder / "report.html"
    page.write_text(render(summary, charts), encoding="utf-8")
    if draw_figures:
        _png(summary, charts, folder / "figures")
    return page


def findings_in(folder):
    """The findings of the study in ``folder``, as on its page. Raises as ``write_report`` does."""
    return findings_of(_summary(Path(folder)))


def _summary(folder):
    records = folder / "results.jsonl"
    if not records.exists():
        raise FileNotFoundError(f"run: {folder} holds no results.jsonl; it should be the --out folder of a study")
    return Summary(read_records(records))


def render(s, charts):
    """The page as a string. ``s``: a Summary; ``charts``: ``figures.charts(s)``."""
    explorer = profile_explorer(s)
    asset = files("artent.study") / "assets"
    found = findings_of(s)
    text = {
        "title": "What fine-tuning wrote, and what attention made of it",
        "lead": _lead(s),
        "css": (asset / "report.css").read_text("utf-8"),
        "findings": "\n".join(map(_finding, found)),
        "modules": "".join(f"<option>{html.escape(name)}</option>" for name in explorer["profiles"]),
        "last_step": len(explorer["steps"]) - 1,
        "legend": "".join(_key(*entry) for entry in LEGEND),
        "panels": "panels two" if len(explorer["methods"]) % 3 == 1 else "panels",  # none alone in its row
        "profiles": "\n".join(_profile_panel(m) for m in explorer["methods"]),
        "method_legend": "".join(_key(m["label"], m["color"], "none", 4) for m in explorer["methods"]),
        "texts": s.config.probe_texts,
        "draws": s.config.null_draws,
        "seeds": len(s.config.seeds),
        "needed": nohair.SEEDS_NEEDED,
        "setup": "\n".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in _setup(s)),
        "paper": PAPER,
        "data": json.dumps(_rounded({**explorer, "charts": charts})).replace("</", "<\\/"),
        "charts_js": (asset / "charts.js").read_text("utf-8"),
        "report_js": (asset / "report.js").read_text("utf-8"),
    }
    return Template((asset / "report.html").read_text("utf-8")).substitute(text)


def findings_of(s):
    """The findings of a study, the most telling first."""
    full = next((m for m in s.methods if m.kind == "full-ft"), None)
    lora, mps = ([m for m in s.methods if m.kind == kind] for kind in ("lora", "mps"))
    pairs = [(next(a for a in lora if a.rank == b.rank), b) for b in mps if any(a.rank == b.rank for a in lora)]
    depths = {m: (s.mean_last(m.name, "valley_depth"), *s.null_depth(m.name)) for m in s.methods}
    told = []
    if lora:
        told.append(findings.valley(depths.get(full), {m.label: depths[m] for m in lora}))
    for a, b in pairs:
        told.append(findings.chain_valley((a.label, *depths[a]), (b.label, *depths[b]), s.core_bond(b.name)))
    if plain := {m.label: s.haar_gap(m.name) for m in s.methods if m.kind != "mps"}:
        told.append(findings.off_cut(plain, {m.label: s.haar_gap(m.name) for m in mps}))
    if lora or mps:
        used = {m.label: (s.mean_last(m.name, "effective_rank"), m.rank) for m in (*lora, *mps)}
        told.append(findings.rank_use(used))
    nulls = {"untrained model": s.fits["untrained"]["c"], **{name: s.fits[name]["c"] for name in s.growth_nulls}}
    told.append(findings.growth(s.fits["base"], nulls))
    attention, updates = nohair.method_seed_ratio(s.head_runs()), s.module_ratio()
    medians = [ratio and ratio[0].median().item() for ratio in (attention, updates)]
    told.append(findings.no_hair(*medians, nohair.verdict(min(len(s.seeds(m.name)) for m in s.methods))))
    told.append(findings.attention_drift({m.label: s.drift(m.name) for m in s.methods}))
    told.append(findings.learning({m.label: s.loss_change(m.name) for m in s.methods}))
    told += [findings.equal_rank(_trained(s, a), _trained(s, b)) for a, b in pairs]
    if s.swept:
        swept = {m.label: (m.learning_rate, s.swept[m.name]) for m in s.methods if m.name in s.swept}
        told.append(findings.learning_rates(swept))
    if excesses := s.bound_excesses():
        told.append(findings.rank_bound(excesses, " and ".join(["LoRA"] * bool(lora) + ["MPS"] * bool(mps))))
    return sorted(told, key=lambda found: found.standing != findings.FAULT)  # a stable sort: faults come first


def _trained(s, m):
    losses = s.swept.get(m.name, {})
    best = min(losses, key=lambda rate: losses[rate] if isfinite(losses[rate]) else inf, default=None)
    return findings.Trained(
        m.label,
        s.final_losses(m.name),
        m.learning_rate,
        s.parameters.get(m.name),
        None if best is None else best == m.learning_rate,
    )


def _lead(s):
    c = s.config
    missing, unswept = len(c.runs) - len(s.runs), len(c.sweeps) - sum(len(stage) == 3 for stage in s.seconds)
    short = f" {missing} of {len(c.runs)} fine-tunings are still missing." if missing else ""
    short += f" {unswept} of {len(c.sweeps)} runs of the learning-rate sweep are still missing." if unswept else ""
    methods = "; ".join(m.label for m in s.methods)
    return html.escape(
        f"A LLaMA of {c.layers} layers and width {c.width} ({c.heads} query heads on {c.kv_heads} key heads), "
        f"pretrained for {c.pretrain_steps} steps on English, then fine-tuned for {c.tune_steps} steps on Python "
        f"source: {methods}, {len(c.seeds)} seeds each. Entropies are in nats.{short}"
    )


LEGEND = (
    ("measured, a line a seed, earlier steps faint", "m0", "none", 4),
    ("rank bound", "ink", "none", 2),
    ("theory: LoRA line, Page's line", "null", "7 4", 2.5),
    ("random Gaussian factors, for MPS cores, ± 2 standard deviations", "null", "none", 1.5),
    ("Haar: same singular values, random vectors", "other", "2 4", 3),
)


def _finding(found):
    mark = " class='fault'" if found.standing == findings.FAULT else ""
    return (
        f"<li{mark}><span class='standing'>{html.escape(found.standing)}</span>"
        f"<h3>{_set(found.claim)}</h3><p>{_set(found.detail)}</p></li>"
    )


def _set(text):
    return html.escape(text).replace("S_ext", "S<sub>ext</sub>")


def _key(name, color, dash, width):
    style = f"stroke:var(--{color});stroke-width:{width};stroke-dasharray:{dash}"
    line = f"<line x1='0' x2='26' y1='4.5' y2='4.5' style='{style}'/>"
    return f"<li><svg aria-hidden='true'>{line}</svg>{html.escape(name)}</li>"


def _profile_panel(method):
    swatch = f"<span class='swatch' style='background:var(--{method['color']})'></span>"
    return (
        f"<figure id='profile-{method['key']}'><h3>{swatch}{html.escape(method['label'])}</h3>"
        "<div class='big' aria-live='polite'></div><div class='valley note'></div><div class='plot'></div></figure>"
    )


def _setup(s):
    setup, c = s.setup, s.config
    runs = {stage: took for stage, took in s.seconds.items() if len(stage) == 2}
    stages = [f"{s.labels.get(m, 'pretraining')}, seed {seed}: {took:.0f} s" for (m, seed), took in runs.items()]
    if swept := sum(s.seconds.values()) - sum(runs.values()):
        stages.append(f"learning-rate sweep, {len(s.seconds) - len(runs)} runs: {swept:.0f} s")
    rates = ", ".join(f"{m.label} {m.learning_rate:g}" for m in c.methods)
    yield "Configuration", c.name + (f" (resumed {s.resumed} time{'s' * (s.resumed > 1)})" if s.resumed else "")
    for key, words in (("old", "Pretrained on"), ("new", "Fine-tuned on")):
        name, size, fingerprint = setup["texts"][key]
        yield words, f"{name}: {size / 1e6:.2f} MB, fingerprint {fingerprint}, {c.held_out:.0%} held out"
    yield "Training", f"AdamW, batch {c.batch}, context {c.context} bytes, 10 % warm-up, cosine to zero"
    yield "Learning rates", f"pretraining {c.pretrain_lr:g}, {rates}"
    counts = "; ".join(f"{m.label}: {s.parameters[m.name]:,}" for m in s.methods if m.name in s.parameters)
    yield "Trained weights", f"full FT all, the others {', '.join(c.targets)} with α = 2r"
    if counts:
        yield "Trained parameters", counts
    yield "Seeds", f"{', '.join(map(str, c.seeds))} (data order and adapter); base model {c.base_seed}"
    yield "Versions", ", ".join(f"{name} {version}" for name, version in setup["versions"].items())
    yield "Machine", f"{setup['machine']}; begun {s.begun}"
    yield "Wall time", f"{sum(s.seconds.values()):.0f} s: {'; '.join(stages)}"


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, torch.Tensor):
        return _rounded(value.tolist())
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _png(s, charts, folder):
    from artent import plots

    folder.mkdir(exist_ok=True)
    for name, spec in charts.items():
        plots.save(plots.chart(spec), folder / f"{name}.png")
    for m in s.methods:
        run = (m.name, s.seeds(m.name)[0])
        module = next(iter(s.profiles[run]))
        null = s.nulls[run][module]
        nulls = {"random cores, Gaussian" if m.kind == "mps" else "random Gaussian": null["gaussian"]}
        nulls |= {"bound of the chain": null["bound"]} if m.kind == "mps" else {}
        axes = plots.profile(
            s.last(run, module),
            nulls={**nulls, "Haar": null["haar"]},
            label=f"{m.label}, {figures.module_label(module)}",
        )
        plots.save(axes, folder / f"profile-{m.name}.png")
