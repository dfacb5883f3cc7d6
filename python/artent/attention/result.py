"""What ``attention_entanglement`` measured, as tensors and as plain values for a record."""

from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class AttentionEntanglement:
    """What ``attention_entanglement`` measured; all tensors on the CPU in float64, entropies in nats."""

    s_ext: torch.Tensor  # (lengths, layers, batch, heads); NaN where a text is shorter than the length
    s_ext_stderr: torch.Tensor  # (lengths, layers, batch, heads): one standard deviation; 0 where exact
    s_ext_lower: torch.Tensor  # (lengths, layers, batch, heads): bounds that hold whatever the estimate does,
    s_ext_upper: torch.Tensor  # (lengths, layers, batch, heads): where exact those of float64 rounding
    lse: torch.Tensor  # (layers, batch, heads): means over the rows of real tokens
    entropy: torch.Tensor  # (layers, batch, heads): mean row Shannon entropy
    purity: torch.Tensor  # (layers, batch, heads): mean row Σp²
    lengths: tuple  # tokens of each prefix
    methods: tuple  # "exact" or "streamed", one a length
    layers: tuple  # layer indices
    tokens: tuple  # real tokens of each text
    variant: str

    def to_dict(self):
        """Plain lists and strings for JSON; a value that wasn't measured is None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in values.items()}


def _plain(value):
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if value != value else value  # NaN is no JSON
