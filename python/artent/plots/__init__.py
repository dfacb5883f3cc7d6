"""Figures, and nothing but figures: of profiles, of attention, and of the charts in a study's report."""

from artent.plots.attention import attention_growth, attention_heads
from artent.plots.base import COLOURS, plt, save
from artent.plots.charts import chart, charts
from artent.plots.profiles import effective_ranks, profile, profiles

__all__ = [
    "COLOURS",
    "attention_growth",
    "attention_heads",
    "chart",
    "charts",
    "effective_ranks",
    "plt",
    "profile",
    "profiles",
    "save",
]
