"""What a study found, in words. Every sentence is chosen by the numbers, and turns when they turn.

Where the paper (arXiv 2601.06788) reports something, ``standing`` says whether this study shows it, and where the data
cannot decide, that. What was not measured gives no finding, or one that says what to run.
"""

from artent.study.findings import attention, chains, nohair, training, updates, valleys
from artent.study.findings.finding import FAILS, FAULT, HOLDS, OPEN, OURS, Finding

__all__ = ["FAILS", "FAULT", "HOLDS", "OPEN", "OURS", "QUESTIONS", "Finding", "findings_of"]


# In the order in which they are told: what judges the paper, then what is ours.
QUESTIONS = {
    "volume-law": updates.volume_law,
    "valley": valleys.valley,
    "valley-full-ft": valleys.valley_full_ft,
    "valley-sensitive": valleys.valley_sensitive,
    "theory-updates": updates.theory_updates,
    "external-law": attention.external_law,
    "external-chain": chains.external_chain,
    "external-steps": attention.external_steps,
    "external-hyperparameters": attention.external_hyperparameters,
    "no-hair": nohair.no_hair,
    "theory-attention": chains.theory_attention,
    "mps-valley": training.mps_valley,
    "mps-loss": training.mps_loss,
    "rank-use": updates.rank_use,
    "off-cut": updates.off_cut,
    "drift": attention.drift,
    "learning": training.learning,
    "learning-rates": training.learning_rates,
    "rank-bound": updates.rank_bound,
}


def findings_of(s):
    """The findings of a Summary, in the order of ``QUESTIONS``, but for faults, which come first."""
    found = [finding for question in QUESTIONS.values() if (finding := question(s)) is not None]
    return sorted(found, key=lambda finding: finding.standing != FAULT)  # stable
