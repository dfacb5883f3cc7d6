"""Entropies by their definition, from the probabilities of an independent decomposition."""

from math import inf

import numpy as np


def entropies(probabilities, alpha=1.0):
    """S_α in nats, one for each array of probabilities; zeros among them count for nothing."""
    S = []
    for p in probabilities:
        p = p[p > 0]
        if alpha == 1:
            S.append(-(p * np.log(p)).sum())
        else:
            S.append(-np.log(p.max()) if alpha == inf else np.log((p**alpha).sum()) / (1 - alpha))
    return np.array(S)
