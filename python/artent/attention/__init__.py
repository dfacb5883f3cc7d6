"""External entanglement: how a model's attention correlates positions, measured where it is computed.

``attn_implementation="artent"`` (registered by ``import artent``) is sdpa with row statistics on request;
``attention_entanglement`` adds the entropy of each head's attention matrix at its row|column cut.
"""

from artent.attention.measure import AttentionEntanglement, attention_entanglement
from artent.attention.spectrum import MAX_TOKENS, VARIANTS, spectral_entropy

__all__ = ["MAX_TOKENS", "VARIANTS", "AttentionEntanglement", "attention_entanglement", "spectral_entropy"]
