"""The page's charts as PNG and SVG files."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["draw"]


def draw(charts, families, palette, folder):
    """Draw every chart, and of every family those that it names in ``drawn`` (without it all), into ``folder``.

    Files are whole or absent. Charts of one group come as one figure of the group's name.
    """
    from artent import plots

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    colours = {name: light for name, (light, _) in palette.items()}
    groups, single = {}, {}
    for name, chart in charts.items():
        (groups.setdefault(chart["group"], []).append(chart) if "group" in chart else single.update({name: chart}))
    for name, family in families.items():
        wanted = family.get("drawn", family["charts"])
        single |= {
            f"{name}-{key.replace('|', '-')}": family["charts"][key] for key in wanted if key in family["charts"]
        }
    for name, together in groups.items():
        _save(plots.charts(together, colours=colours), folder, name)
    for name, chart in single.items():
        _save(plots.chart(chart, colours=colours), folder, name)


def _save(ax, folder, name):
    from artent import plots

    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    for suffix in ("png", "svg"):
        part = folder / f"{name}.part.{suffix}"
        plots.save(ax, part, close=suffix == "svg")
        os.replace(part, folder / f"{name}.{suffix}")
