"""Studies side by side as tables: their verdicts, and the settings in which they differ."""

from __future__ import annotations

import html

from artent.study.report import words
from artent.study.report.words import told

__all__ = ["differences", "verdicts"]


def verdicts(names, found):
    by_run = [{each.key: each for each in run} for run in found]
    placed = {claim.key: claim.title for *_, claims in words.PARTS for claim in claims}
    keys = [*placed, *(key for run in by_run for key in run if key not in placed)]
    rows = []
    for key in dict.fromkeys(keys):
        if any(key in run for run in by_run):
            cells = "".join(
                f"<td title='{html.escape(run[key].claim, True)}'>{words.badge(run[key].standing)}</td>"
                if key in run
                else "<td>–</td>"
                for run in by_run
            )
            rows.append(f"<tr><th scope='row'>{told(placed.get(key, key.replace('-', ' ')))}</th>{cells}</tr>")
    head = "".join(f"<th scope='col'>{told(name)}</th>" for name in names)
    return _table("Verdicts", "Claim", head, rows)


def _flat(value, before=""):
    """``{"data.context": 256, …}`` of nested dicts; lists as they are."""
    made = {}
    for key, item in value.items():
        made |= _flat(item, f"{before}{key}.") if isinstance(item, dict) else {f"{before}{key}": item}
    return made


def differences(names, summaries):
    """The settings in which the runs differ."""
    flat = []
    for s in summaries:
        values = _flat({k: v for k, v in s.config.to_dict().items() if k not in ("methods", "sweep")})
        values["methods"] = ", ".join(m.label for m in s.config.methods)
        flat.append({**values, **_methods(s.config), **_sweep(s.config)})
    rows = []
    for key in dict.fromkeys(key for values in flat for key in values):
        own = [_setting(values.get(key)) for values in flat]
        there = [each for each, values in zip(own, flat) if key in values]
        alike = len(set(there)) == 1 and (key.startswith("methods.") or len(there) == len(own))
        if not alike:  # a method that a study lacks is told by "methods"
            cells = "".join(f"<td>{told(value)}</td>" for value in own)
            rows.append(f"<tr><th scope='row'><code>{told(key)}</code></th>{cells}</tr>")
    if not rows:
        return "<section><h2>Settings that differ</h2><p>None: the configurations are the same.</p></section>"
    head = "".join(f"<th scope='col'>{told(name)}</th>" for name in names)
    return _table("Settings that differ", "Setting", head, rows)


def _methods(config):
    """Every field of every method, by its name."""
    rows = zip(config.methods, config.to_dict()["methods"])
    return {f"methods.{m.name}.{key}": value for m, fields in rows for key, value in fields.items()}


def _sweep(config):
    """The values that every setting of every method takes in the sweep, and the seeds of their runs."""
    found = {}
    for v in config.variations:
        values, seeds = found.setdefault(f"sweep.{v.of}.{v.vary}", ({}, {}))
        values[_setting(v.value)] = seeds[str(v.seed)] = None
    return {key: f"{', '.join(values)}; seeds {', '.join(seeds)}" for key, (values, seeds) in found.items()}


def _table(title, first, head, rows):
    table = f"<thead><tr><th scope='col'>{first}</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    scrolled = f"<div class='scroll' tabindex='0'><table class='beside'>{table}</table></div>"
    return f"<section><h2>{title}</h2>{scrolled}</section>"


def _setting(value):
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else str(value)
