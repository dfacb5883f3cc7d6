"""A rank for every module, from the profile of its update, as PEFT's ``rank_pattern``."""

from artent.ranks.suggest import suggest_ranks
from artent.ranks.suggestion import RankSuggestion

__all__ = ["RankSuggestion", "suggest_ranks"]
