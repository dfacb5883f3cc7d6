"""artent_ext: the kernels of artent as ordinary PyTorch ops."""

from artent_ext import reference
from artent_ext._native import build_info
from artent_ext._version import __version__
from artent_ext.attention import (
    AttentionStats,
    attention_apply,
    attention_entropy,
    attention_stats,
    scaled_dot_product_attention_with_stats,
)
from artent_ext.lowrank import svd_lowrank
from artent_ext.operators import Operator
from artent_ext.rsvd import RSVD, rsvd
from artent_ext.spectral import (
    BondEntropies,
    SpectralEntropy,
    attention_bond_entropies,
    attention_spectral_entropy,
)

__all__ = [
    "AttentionStats",
    "BondEntropies",
    "Operator",
    "RSVD",
    "SpectralEntropy",
    "__version__",
    "attention_apply",
    "attention_bond_entropies",
    "attention_entropy",
    "attention_spectral_entropy",
    "attention_stats",
    "build_info",
    "reference",
    "rsvd",
    "scaled_dot_product_attention_with_stats",
    "svd_lowrank",
]
