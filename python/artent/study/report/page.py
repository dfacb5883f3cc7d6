"""The page of one study: the overview, a table of verdicts, a section a claim, then what looks closer."""

from __future__ import annotations

import html
import json
import os
from importlib.resources import files
from math import isfinite
from pathlib import Path
from string import Template

import torch

from artent.study.report import attention, details, hair, overview, sweeps, training, updates, words
from artent.study.report.explorer import explorer
from artent.study.report.view import View
from artent.study.report.words import told

__all__ = ["SCRIPTS", "charts_of", "figure", "fill", "render", "write"]

SCRIPTS = ("svg", "reading", "lines", "dots", "heat", "charts", "explorer")
STYLES = ("page", "charts")


def charts_of(view):
    """(charts, families) of a study, by id; without data there is none."""
    charts, families = overview.charts(view), {}
    for part in (updates, attention, hair, training):
        charts |= part.charts(view)
    for part in (updates, attention, sweeps, training):
        families |= part.families(view)
    charts = {name: chart for name, chart in charts.items() if chart and (chart.get("series") or chart.get("rows"))}
    return charts, {name: family for name, family in families.items() if family["charts"]}


def render(summary, findings, view=None, drawn=None):
    """The page as a string. ``findings``: Findings; ``view``, ``drawn``: as made before from the same Summary."""
    view = view or View(summary)
    charts, families = drawn or charts_of(view)
    by_key = {found.key: found for found in findings}
    placed = [claim for *_, claims in words.PARTS for claim in claims]
    further = [found for found in findings if found.key not in {claim.key for claim in placed}]
    body = [
        details.header(view),
        _faults(findings),
        _overview(view, charts),
        _verdicts(by_key, further),
        *(_part(part, by_key, charts, families) for part in words.PARTS),
        _further(further),
        "<section class='closer' aria-labelledby='closer'><h2 id='closer'>Look closer</h2></section>",
        details.explorer_section(view),
        *(_section(each, charts, families) for each in words.ABOUT),
        details.setup(view),
        details.counts(view),
        details.footer(),
    ]
    data = {
        "charts": charts,
        "families": families,
        "legends": {overview.GROUP: overview.legend(view)},
        "explorer": explorer(view),
    }
    title = f"{summary.config.name}: entanglement of fine-tuning"
    without = (
        "all numbers lie beside this page, in <code>tables/</code>, figures, where drawn, in <code>figures/</code>."
    )
    return fill(title, "\n".join(body), data, view.palette, without)


def fill(title, body, data, palette, without):
    """The template with everything in it: styles, scripts, data.

    ``palette``: ``{name: (light, dark)}``; ``without``: where to look without scripts, HTML.
    """
    asset = files("artent.study.report") / "assets"

    def joined(names, suffix):
        return "\n".join((asset / f"{name}.{suffix}").read_text("utf-8") for name in names)

    light, dark = (
        ";".join(f"--{name}:{both[i]}" for name, both in palette.items() if name not in ("ink",)) for i in (0, 1)
    )
    colours = f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"
    text = {
        "title": html.escape(title),
        "css": joined(STYLES, "css") + colours,
        "body": body,
        "without": without,
        # "<" would end the script element, whatever a name holds
        "data": json.dumps(_plain(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "js": joined(SCRIPTS, "js").replace('"use strict";\n', ""),
    }
    return Template((asset / "page.html").read_text("utf-8")).substitute(text)


def write(path, text):
    """A file whole or absent."""
    part = Path(path).with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return Path(path)


def figure(name, title, caption, charts, families):
    """A figure's HTML, or nothing where there is no such chart."""
    if name in charts:
        holder = f"<div data-chart='{html.escape(name)}' id='chart-{html.escape(name)}'></div>"
    elif name in families:
        holder = f"<div data-family='{html.escape(name)}' id='chart-{html.escape(name)}'></div>"
    else:
        return ""
    caption = f"<figcaption>{told(caption)}</figcaption>" if caption else ""
    wide = " class='wide'" if name in words.WIDE else ""
    return f"<figure{wide}><h4>{told(title)}</h4>{holder}{caption}</figure>"


def _faults(findings):
    """What cannot be, before anything else."""
    return "".join(
        f"<p class='short fault' role='alert'>{words.badge(found.standing)} <a href='#{html.escape(found.key)}'>"
        f"{told(found.claim)}</a></p>"
        for found in findings
        if found.standing == "fault"
    )


def _overview(view, charts):
    panels = "".join(
        f"<div class='panel'><div data-chart='{html.escape(name)}' data-group='{overview.GROUP}' "
        f"id='chart-{html.escape(name)}'></div></div>"
        for name, chart in charts.items()
        if chart.get("group") == overview.GROUP
    )
    return (
        "<section class='overview' aria-labelledby='overview'><h2 id='overview'>Internal and external entanglement</h2>"
        f"<figure><div class='row'>{panels}</div><div data-legend='{overview.GROUP}'></div>"
        f"<figcaption>{details.overview_caption(view)}</figcaption></figure></section>"
    )


def _verdicts(by_key, further):
    rows = []
    for _, title, _, claims in words.PARTS:
        told_here = [claim for claim in claims if claim.key in by_key]
        if told_here:
            rows.append(f"<tr class='part'><th colspan='3' scope='colgroup'>{told(title)}</th></tr>")
        for claim in told_here:
            found = by_key[claim.key]
            rows.append(_verdict(claim.key, claim.title, found))
    for found in further:
        rows.append(_verdict(found.key, found.key.replace("-", " "), found))
    return (
        "<section aria-labelledby='verdicts'><h2 id='verdicts'>Verdicts</h2>"
        "<table class='verdicts'><thead class='unseen'><tr><th scope='col'>Claim</th><th scope='col'>Found</th><th "
        "scope='col'>Verdict</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></section>"
    )


def _verdict(key, title, found):
    link = f"<a href='#{html.escape(key)}'>{told(title)}</a>"
    said = f"<td class='said'>{told(found.claim)}</td>"
    return f"<tr><th scope='row'>{link}</th>{said}<td>{words.badge(found.standing)}</td></tr>"


def _part(part, by_key, charts, families):
    number, title, text, claims = part
    told_here = [claim for claim in claims if claim.key in by_key]
    if not told_here:
        return ""
    shown = "".join(_claim(claim, by_key[claim.key], charts, families) for claim in told_here)
    return (
        f"<section class='part' aria-labelledby='part-{number}'><h2 id='part-{number}'>{told(title)}</h2>"
        f"<p class='lead'>{told(text)}</p>{shown}</section>"
    )


def _claim(claim, found, charts, families):
    figures = [figure(*each, charts, families) for each in claim.figures]
    figures = [each for each in figures if each]
    if len(figures) == 1:
        beside = f"<div>{_words(found)}{_numbers(found)}</div><div class='panels'>{figures[0]}</div>"
        return f"<article id='{claim.key}' class='beside'>{beside}</article>"
    panels = f"<div class='panels'>{''.join(figures)}</div>" if figures else ""
    return f"<article id='{claim.key}'>{_words(found)}{panels}{_numbers(found)}</article>"


def _words(found):
    paper = f"<p class='paper'><span>The paper</span> {told(found.paper)}</p>" if found.paper else ""
    return (
        f"<header>{words.badge(found.standing)}<h3>{told(found.claim)}</h3></header>"
        f"{paper}<p class='detail'>{told(found.detail)}</p>"
    )


def _numbers(found):
    """The finding's own numbers, folded away; lists of more than a dozen lie in the tables alone."""
    numbers = getattr(found, "numbers", None) or {}
    rows = "".join(
        f"<tr><th scope='row'>{told(key)}</th><td>{told(_number(value))}</td></tr>" for key, value in numbers.items()
    )
    return f"<details><summary>Numbers behind it</summary><table>{rows}</table></details>" if rows else ""


def _number(value):
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_number(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)) and len(value) == 3 and not any(isinstance(v, (str, dict)) for v in value):
        return f"{_number(value[0])} ({_number(value[1])} to {_number(value[2])})"  # with its interval
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_number(each) for each in value[:12])
        return shown + (f" … ({len(value)} in all)" if len(value) > 12 else "")
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)


def _further(further):
    if not further:
        return ""
    shown = "".join(f"<article id='{html.escape(f.key)}'>{_words(f)}{_numbers(f)}</article>" for f in further)
    return f"<section class='part' aria-labelledby='further'><h2 id='further'>Also measured</h2>{shown}</section>"


def _section(about, charts, families):
    key, title, text, figures = about
    shown = [each for each in (figure(*f, charts, families) for f in figures) if each]
    if not shown:
        return ""
    wide = " one" if len(shown) == 1 else ""
    return (
        f"<section aria-labelledby='{key}'><h3 id='{key}'>{told(title)}</h3><p class='note'>{told(text)}</p>"
        f"<div class='panels{wide}'>{''.join(shown)}</div></section>"
    )


def _plain(value):
    """Lists, strings and numbers of five digits; what is not finite is null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple, range)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if isfinite(value) else None
    return value
