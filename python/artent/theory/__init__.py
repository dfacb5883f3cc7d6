"""What measurements are drawn against: lines, nulls, spectra and growth laws. Definitions: docs/math.md §1, §5."""

from artent.theory.growth import ChainFit, GrowthFit, akaike_weights, fit_chain, fit_growth, fit_rise, rising_bonds
from artent.theory.lines import core_ranks, lora_line, page, page_line, rank_bound
from artent.theory.nulls import Null, causal_uniform, gaussian_null, haar_null
from artent.theory.spectra import (
    Spectrum,
    bulk_edge,
    effective_length,
    mixture_entropy,
    outlier,
    signal,
    split_spectrum,
)

__all__ = [
    "ChainFit",
    "GrowthFit",
    "Null",
    "Spectrum",
    "akaike_weights",
    "bulk_edge",
    "causal_uniform",
    "core_ranks",
    "effective_length",
    "fit_chain",
    "fit_growth",
    "fit_rise",
    "gaussian_null",
    "haar_null",
    "lora_line",
    "mixture_entropy",
    "outlier",
    "page",
    "page_line",
    "rank_bound",
    "rising_bonds",
    "signal",
    "split_spectrum",
]
