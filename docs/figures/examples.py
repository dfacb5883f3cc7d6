"""The updates of the page on reading profiles: 256 × 256, drawn at random or built by hand, one seed each."""

import artent
import torch

SIDE = 256


def _generator():
    return torch.Generator().manual_seed(0)


def random_full():
    """A Gaussian matrix: no structure at all."""
    return torch.randn(SIDE, SIDE, generator=_generator())


def random_lora(rank=8):
    """Gaussian factors: no structure but the rank."""
    g = _generator()
    return artent.LoRAUpdate(torch.randn(SIDE, rank, generator=g), torch.randn(rank, SIDE, generator=g))


def few_rows(rank=8, heads=2):
    """Only the rows of two heads of sixteen are written to."""
    update = random_lora(rank)
    B = update.B.clone()
    B[heads * SIDE // 16 :] = 0
    return artent.LoRAUpdate(B, update.A)


def unused_rank(rank=64):
    """A rank of 64 whose singular values decay: few of them matter."""
    update = random_lora(rank)
    return artent.LoRAUpdate(update.B * torch.exp(-torch.arange(rank) / 5), update.A)


def diverged(rank=16):
    """One direction has outgrown all others, as after steps that were too large."""
    update = random_lora(rank)
    return artent.LoRAUpdate(update.B * torch.tensor([12.0, *[1.0] * (rank - 1)]), update.A)
