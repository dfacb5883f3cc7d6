"""External entanglement: how a model's attention correlates positions, measured where it is computed.

``attn_implementation="artent"`` (registered by ``import artent``) is sdpa with row statistics on request;
``attention_entanglement`` adds the entropy of each head's attention matrix at its row|column cut.
"""

from artent.attention.measure import attention_entanglement
from artent.attention.plan import EXACT_TOKENS, METHODS
from artent.attention.result import AttentionEntanglement
from artent.attention.spectrum import MAX_TOKENS, VARIANTS, spectral_entropy

__all__ = [
    "EXACT_TOKENS",
    "MAX_TOKENS",
    "METHODS",
    "VARIANTS",
    "AttentionEntanglement",
    "attention_entanglement",
    "spectral_entropy",
]
