"""What PEFT saves beside factors: weights of modules that were trained as a copy, and rows of tokens."""

import torch

from artent.reading.differences import check_pair, difference
from artent.reading.names import ROWS
from artent.reading.pending import PendingUpdate
from artent.reading.safetensors_files import SafetensorsFiles
from artent.reading.weights import Weights, resolved


def saved_whole(tensors: SafetensorsFiles, key: str, name: str, base: Weights, config: dict) -> PendingUpdate:
    """The update of a module of which an adapter holds the weight itself, or the rows of some tokens."""
    weight = base.key(name)
    shape, turned = base.facts(weight).shape, weight in base.turned
    rows = _trained_rows(config, name) if key.endswith(ROWS) else None
    found = tensors.facts(key).shape
    check_pair(name, found if rows is None else (shape[0], *found[1:]), shape)
    if rows is not None and len(rows) != found[0]:
        raise ValueError(
            f"{name}: {found[0]} rows are saved, and its configuration names {len(rows)} (likely cause: a damaged file)"
        )

    def read(whole):
        before = resolved(base.tensors[weight], whole)
        after = tensors[key]
        if rows is not None:
            after = before.to(after).index_copy(0, torch.tensor(rows, device=after.device), after)
        return difference(name, after, before, turned)

    return PendingUpdate(name, shape[::-1] if turned else shape, None, read, base.parameters(weight))


def _trained_rows(config, name):
    """The rows of ``trainable_token_indices``: a list for the embedding, or lists by the ends of names."""
    rows = config.get("trainable_token_indices") or config.get("token_indices") or []
    if isinstance(rows, dict):
        rows = next((r for ending, r in rows.items() if f".{name}".endswith(f".{ending}")), [])
    return list(rows)
