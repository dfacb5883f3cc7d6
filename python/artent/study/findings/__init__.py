"""What a study found, in words. Every sentence is chosen by the numbers, and turns when they turn.

Where the paper (arXiv 2601.06788) reports something, ``standing`` says whether this study shows it, and where the data
cannot decide, that. What was not measured gives no finding, or one that says what to run.
"""

from artent.study.findings import attention, nohair, training, updates, valleys
from artent.study.findings.finding import FAILS, FAULT, HOLDS, OPEN, OURS, Finding

__all__ = ["FAILS", "FAULT", "HOLDS", "OPEN", "OURS", "Finding", "findings_of"]


def findings_of(s):
    """The findings of a Summary: faults first, then what judges the paper in its order, then what is ours."""
    asked = (
        updates.volume_law,
        valleys.valley,
        valleys.valley_full_ft,
        valleys.valley_sensitive,
        updates.theory_updates,
        attention.external_law,
        attention.external_chain,
        attention.external_steps,
        attention.external_hyperparameters,
        nohair.no_hair,
        attention.theory_attention,
        training.mps_valley,
        training.mps_loss,
        updates.rank_use,
        updates.off_cut,
        attention.drift,
        training.learning,
        training.learning_rates,
        updates.rank_bound,
    )
    found = [finding for question in asked if (finding := question(s)) is not None]
    return sorted(found, key=lambda finding: finding.standing != FAULT)  # stable
