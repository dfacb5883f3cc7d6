"""What measurements are drawn against: lines, nulls and growth laws. Definitions: docs/math.md §1, §5."""

from artent.theory.growth import ChainFit, GrowthFit, fit_chain, fit_growth
from artent.theory.lines import core_ranks, lora_line, page, page_line, rank_bound
from artent.theory.nulls import Null, causal_uniform, gaussian_null, haar_null

__all__ = [
    "ChainFit",
    "GrowthFit",
    "Null",
    "causal_uniform",
    "core_ranks",
    "fit_chain",
    "fit_growth",
    "gaussian_null",
    "haar_null",
    "lora_line",
    "page",
    "page_line",
    "rank_bound",
]
