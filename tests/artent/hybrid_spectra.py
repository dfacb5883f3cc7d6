"""Matrices of many kinds of spectrum, and what training writes: what an estimate of entropies has to cope with."""

import torch


def haar(size, k, generator):
    Q, R = torch.linalg.qr(torch.randn(size, k, generator=generator))
    return Q * R.diagonal().sign()


def of_probabilities(p):
    """p: index 1 … k → Schmidt probabilities at the row|column cut; Haar-random singular vectors."""

    def make(m, n, generator):
        k = min(m, n)
        weights = p(torch.arange(1, k + 1, dtype=torch.float64), k).sqrt().float()
        return (haar(m, k, generator) * weights) @ haar(n, k, generator).mT

    return make


def noisy(rank, noise):
    def make(m, n, g):
        signal = torch.randn(m, rank, generator=g) @ torch.randn(rank, n, generator=g) / rank**0.5
        return signal + noise * torch.randn(m, n, generator=g)

    return make


def scaled(rows, columns, elements):
    """Gaussian, with log-normal scales of its rows, its columns and its elements."""

    def make(m, n, g):
        scales = [(rows, (m, 1)), (columns, (1, n)), (elements, (m, n))]
        W = torch.randn(m, n, generator=g)
        for width, shape in scales:
            W = W * (width * torch.randn(shape, generator=g)).exp()
        return W

    return make


def sparse(share):
    return lambda m, n, g: torch.randn(m, n, generator=g) * (torch.rand(m, n, generator=g) < share)


def blocks(m, n, g):
    W = torch.zeros(m, n)
    for i in range(8):
        rows, columns = slice(i * m // 8, (i + 1) * m // 8), slice(i * n // 8, (i + 1) * n // 8)
        W[rows, columns] = (1 + i) * torch.randn(W[rows, columns].shape, generator=g)
    return W


def adam(m, n, g):
    """What some steps of Adam write into a layer that learns a few directions from noisy data."""
    teacher = torch.randn(m, 6, generator=g) @ torch.randn(6, n, generator=g) / n**0.5
    W = torch.zeros(m, n, requires_grad=True)
    optimiser = torch.optim.Adam([W], lr=1e-2)
    scales = torch.randn(n, generator=g).exp()
    for _ in range(12):
        x = torch.randn(32, n, generator=g) * scales
        loss = (x @ (W - teacher).mT + torch.randn(32, m, generator=g)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return W.detach()


KINDS = {
    "Gaussian": scaled(0, 0, 0),
    "isometry": of_probabilities(lambda i, k: torch.ones_like(i)),
    "1/i": of_probabilities(lambda i, k: 1 / i),
    "1/i²": of_probabilities(lambda i, k: i**-2),
    "1/√i": of_probabilities(lambda i, k: i**-0.5),
    "exponential, fast": of_probabilities(lambda i, k: torch.exp(-2 * i)),
    "exponential": of_probabilities(lambda i, k: torch.exp(-i / 8)),
    "exponential, slow": of_probabilities(lambda i, k: torch.exp(-5 * i / k)),
    "low rank": noisy(40, 0.0),
    "rank one": noisy(1, 0.0),
    "low rank and a little noise": noisy(16, 0.01),
    "low rank and noise": noisy(8, 0.5),
    "rank 64 and noise": noisy(64, 0.3),
    "two plateaus": of_probabilities(lambda i, k: torch.where(i <= k // 16, 1.0, 1 / 32)),
    "two plateaus, the first wider than a block": of_probabilities(lambda i, k: torch.where(i <= 40, 1.0, 1 / 200)),
    "two plateaus, the first narrower": of_probabilities(lambda i, k: torch.where(i <= 5, 1.0, 1 / 200)),
    "near identity": lambda m, n, g: torch.eye(m, n) + 0.01 * torch.randn(m, n, generator=g),
    "identity": lambda m, n, g: torch.eye(m, n),
    "sparse": sparse(0.02),
    "a few elements": sparse(0.004),
    "heavy tails": scaled(0, 0, 1.5),
    "rows of many scales": scaled(1.5, 0, 0),
    "rows and columns of many scales": scaled(1.0, 1.0, 0),
    "signs": lambda m, n, g: torch.randn(m, n, generator=g).sign(),
    "signs of low rank and noise": lambda m, n, g: noisy(4, 0.5)(m, n, g).sign(),
    "smooth": lambda m, n, g: torch.exp(-(torch.arange(m)[:, None] * n / m - torch.arange(n)).abs() / 20),
    "blocks": blocks,
    "Adam": adam,
}


def make(kind, shape, seed=0):
    return KINDS[kind](*shape, torch.Generator().manual_seed(seed))
