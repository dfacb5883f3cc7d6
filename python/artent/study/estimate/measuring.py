"""What measuring holds on a device, beside weights and optimizer state: gradients are gone by then."""

from __future__ import annotations

__all__ = ["measuring_memory"]

TOKENS = 1 << 14  # texts whose attention is measured go through the model together up to so many (measuring.growth)
HEADS = 256 << 20  # bytes of the heads that are measured at a time (attention.probe)
HELD = 1 << 24  # numbers of the updates that are profiled together (rounds)


def measuring_memory(config, architecture, trained):
    """Bytes at the peak of the largest of three: the held-out loss, attention, the profiles."""
    half = config.training.bf16 or config.model.dtype == "bfloat16"
    number = 2 if half else 4
    return max(
        _loss(config, architecture, number), _attention(config, architecture, number), _profiles(trained, number)
    )


def _loss(config, a, number):
    """Logits, their float32 and the loss's logarithms."""
    rows = min(config.training.batch, config.measure.loss_texts)
    return rows * config.data.context * a.vocab * (number + 8 if number == 2 else 8)


def _attention(config, a, number):
    """A forward pass, in its MLP, and the matrices of some heads."""
    measure = config.measure
    texts = max(1, min(measure.texts, TOKENS // measure.length))
    return texts * measure.length * number * (3 * a.mlp + 4 * a.hidden) + HEADS


def _profiles(trained, number):
    """W − W₀, both whole, its working copy, and Gram matrices with the eigensolver's; float64 where float32 will not
    do. Factored updates are small."""
    rank, found = trained.method.rank, 0
    for m, n in trained.shapes:
        if rank is None:
            found = max(found, (2 * number + 4 + 4 + 8) * m * n + 24 * min(m, n) ** 2)
        else:
            found = max(found, 8 * rank * 4 * (m + n) + 24 * rank * max(m, n))
    return found + (4 * min(HELD, sum(m * n for m, n in trained.shapes)) if rank is None else 0)
