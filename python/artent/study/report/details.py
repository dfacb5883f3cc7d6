"""The page's own words about a study: its head, captions, set-up, what became of the data."""

from __future__ import annotations

import html

from artent.study.report.explorer import thinned
from artent.study.report.words import PAPER, told

__all__ = ["counts", "explorer_section", "footer", "header", "overview_caption", "setup"]


def header(view):
    """Title and lead: the model, the data, the methods, and what is still missing."""
    s = view.s
    c, missing = s.config, _missing(s)
    m = c.model
    model = (
        f"A LLaMA of {m.layers} layers and width {m.width} ({m.heads} query heads on {m.kv_heads} key heads), "
        "pretrained "
        f"here for {m.pretrain_steps:,} steps"
        if m.small
        else m.name
    )
    methods = ", ".join(method.label for method in view.methods)
    lead = (
        f"{model}, fine-tuned for {c.training.steps:,} steps on {_data(s)} by {methods}; "
        f"{_count(len(c.seeds), 'seed')} each. Entropies are in nats."
    )
    short = f"<p class='short' role='note'>{told(missing)}</p>" if missing else ""
    return (
        f"<header class='top'><p class='kicker'>{told(c.name)} · a study by artent</p>"
        "<h1>What fine-tuning writes, and what attention makes of it</h1>"
        f"<p class='lead'>{told(lead)}</p>{short}</header>"
    )


def _count(n, noun):
    return f"{n} {noun}" + "s" * (n != 1)


def _data(s):
    named = s.setup.get("texts", {}).get("new")
    return _name(named) if named else s.config.data.name


def _name(text):
    return text["name"] if isinstance(text, dict) else str(text[0])


def _missing(s):
    """What of the configuration is not done, in words; empty where all is."""
    c = s.config
    told_here = []
    wanted = [(m.name, seed) for m, seed in c.runs]
    parts = [
        ("fine-tuning", wanted),
        ("run of the sweep", [v.stage for v in c.variations]),
        ("control", [(k, seed) for k in c.controls if k not in ("untrained", "lora-10x") for seed in c.seeds]),
    ]
    for words, stages in parts:
        if lacking := [stage for stage in stages if stage not in s.seconds]:
            many = "s" if words != "run of the sweep" else ""
            plural = words.replace("run of", "runs of") + many
            told_here.append(f"{len(lacking)} of {len(stages)} {plural}")
    if not told_here:
        return ""
    return f"This study is not finished. Still missing: {'; '.join(told_here)}. What follows is of what there is."


def overview_caption(view):
    s = view.s
    seeds = "shaded: range over seeds. " if len(s.config.seeds) > 1 else ""
    return told(
        "Left: profiles S(l) of the updates ΔW, means over layers; the arrow is the deepest valley. Right: S_ext of "
        "the "
        f"attention matrices, means over layers, heads and texts; {seeds}Switch lines in the legend; point at a chart "
        "or use "
        "the arrow keys for values. From the paper (arXiv 2601.06788): that internal profiles show a volume law with "
        "a valley "
        "at the cut in LoRA and differ by method, while attention’s entanglement does not. Our reading: primes as "
        "sites, rows "
        "first; S_ext as the entropy of A at its row|column cut, against ln T; the nulls. The paper’s own figure was "
        "not "
        "available to us."
    )


def explorer_section(view):
    """The controls and the table that ``assets/explorer.js`` fills."""

    def options(pairs):
        return "".join(f"<option value='{html.escape(str(v), True)}'>{html.escape(str(w))}</option>" for v, w in pairs)

    layers = sorted({layer for by_layer in view.matrices.values() for layer in by_layer})
    picks = [
        ("target", "Matrix", [(m, m) for m in view.matrices]),
        ("layer", "Layer", [("mean", "mean over layers"), *((layer, layer) for layer in layers)]),
        ("method", "Method", [("all", "all methods"), *((m.name, m.label) for m in view.methods)]),
        ("seed", "Seed", [("all", "all seeds"), *((seed, seed) for seed in view.s.config.seeds)]),
    ]
    selects = "".join(
        f"<label>{words} <select data-control='{key}'>{options(pairs)}</select></label>" for key, words, pairs in picks
    )
    last = len(thinned(view.steps)) - 1
    slider = f"<input type='range' data-control='step' min='0' max='{last}' value='{last}'>"
    slider = f"<label>Step {slider} <output></output></label>"
    head = "".join(
        f"<th scope='col'>{told(words)}</th>"
        for words in ("Method", "S at the cut", "Effective rank", "Valley", "Random’s valley")
    )
    return (
        "<section aria-labelledby='explorer'><h3 id='explorer'>Every profile</h3>"
        "<p class='note'>With one method: a line a seed, earlier steps faint, and the nulls of its shape. Haar is "
        "drawn at the last step.</p>"
        f"<figure data-explorer><div class='controls'>{selects}{slider}</div>"
        "<div class='plot' id='explorer-plot'></div>"
        f"<div class='scroll' tabindex='0'><table "
        f"class='numbers'><thead><tr>{head}</tr></thead><tbody></tbody></table></div></figure></section>"
    )


def setup(view):
    rows = "".join(f"<tr><th scope='row'>{told(k)}</th><td>{told(v)}</td></tr>" for k, v in _setup(view))
    return _table("setup", "Set-up", rows)


def _setup(view):
    s = view.s
    c, t, measure = s.config, s.config.training, s.config.measure
    yield "Configuration", c.name + (f" (resumed {_count(s.resumed, 'time')})" if s.resumed else "")
    model = f"{c.model.name}, {c.model.dtype}"
    if c.model.small:
        m = c.model
        model += (
            f": {m.layers} layers, width {m.width}, {m.heads} heads on {m.kv_heads}, pretrained at {m.pretrain_lr:g}"
        )
    yield "Model", model
    batch = f"batch {t.batch}" + (f" × {t.accumulation}" if t.accumulation > 1 else "")
    yield (
        "Training",
        f"AdamW, {t.steps:,} steps, {batch}, context {c.data.context:,} tokens, {t.warmup:.0%} warm-up, cosine to zero",
    )
    yield "Learning rates", "; ".join(f"{x.label}: {x.learning_rate:g}" for x in view.methods)
    counts = "; ".join(f"{x.label}: {s.parameters[x.name]:,}" for x in view.methods if x.name in s.parameters)
    if counts:
        yield "Trained parameters", counts
    draws = _count(measure.null_draws, "draw")
    yield "Profiles", f"of {', '.join(measure.targets)}, every {measure.every} steps; random nulls of {draws}"
    yield "Attention", f"{_count(measure.texts, 'held-out text')}, T = {', '.join(map(str, measure.lengths))}"
    j = c.judge
    margins = f"margins {j.margin:g} nats of S_ext and {j.loss_margin:g} {s.loss_unit} of loss"
    yield "Verdicts", f"from {j.seeds} seeds a method, {margins}, {j.confidence:.0%} confidence"
    yield "Seeds", f"{', '.join(map(str, c.seeds))} (order of the texts, start of the adapter)"
    if c.controls:
        yield "Controls", "; ".join(s.labels.get(name, name) for name in c.controls)
    yield "Loss", s.loss_unit
    yield "Versions", ", ".join(f"{name} {version}" for name, version in s.setup.get("versions", {}).items())
    yield "Machine", f"{s.setup.get('machine', 'not recorded')}; begun {s.begun}"
    seconds = sum(s.seconds.values())
    yield "Time", f"{seconds:,.0f} s in {len(s.seconds)} stages"


def counts(view):
    """What became of the rows of every text; nothing where the records do not tell."""
    rows = []
    for key, words in (("old", "Held against forgetting"), ("new", "Fine-tuned on")):
        text = view.s.setup.get("texts", {}).get(key)
        if not text:
            continue
        if isinstance(text, dict):
            said = text.get("sentence") or "; ".join(
                f"{k.replace('_', ' ')}: {v}" for k, v in text.items() if k != "name"
            )
            said = f"{text['name']}. {said}" if not str(said).startswith(str(text["name"])) else said
            said += f"; fingerprint {text['fingerprint']}" if text.get("fingerprint") else ""
        else:
            name, size, fingerprint = (*text, None, None)[:3]
            said = f"{name}: {size:,} bytes, fingerprint {fingerprint}"
        rows.append(f"<tr><th scope='row'>{words}</th><td>{told(said)}</td></tr>")
    if not rows:
        return ""
    return _table("data-counts", "Data", "".join(rows))


def _table(key, title, rows):
    table = f"<figure><table><tbody>{rows}</tbody></table></figure>"
    return f"<section aria-labelledby='{key}'><h3 id='{key}'>{title}</h3>{table}</section>"


def footer():
    return (
        "<footer class='note'><p>Definitions and conventions are artent’s, after "
        f"<a href='{PAPER}'>arXiv 2601.06788</a>, whose bipartition of attention is not known to us. Every number is "
        "computed "
        "from <code>results.jsonl</code>; all numbers lie as CSV in <code>tables/</code>, figures, where drawn, as PNG "
        "and SVG in <code>figures/</code>.</p></footer>"
    )
