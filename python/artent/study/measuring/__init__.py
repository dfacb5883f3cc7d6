"""The measurements of a study that the training callback does not make.

``growth`` and its fits, what attention does without a trained model (``nulls``), updates without structure
(``update_nulls``), attention's rows and outputs (``rows``), and A as a chain of sites (``chain``).
"""

from artent.study.measuring.chain import chain
from artent.study.measuring.growth import TREATMENTS, fit, growth
from artent.study.measuring.nulls import growth_nulls
from artent.study.measuring.rows import samples, samples_record, write_samples
from artent.study.measuring.update_nulls import profile_nulls

__all__ = [
    "TREATMENTS",
    "chain",
    "fit",
    "growth",
    "growth_nulls",
    "profile_nulls",
    "samples",
    "samples_record",
    "write_samples",
]
