"""How much a study computes: floating-point operations of training and of measuring, a stage at a time.

A multiplication and an addition are two. Training takes 6 a weight and token, two forward and four back; without the
gradients of frozen weights 4, and with checkpointing two more. What float64 and eigenvalues cost beyond their
operations is in their numbers, as fractions of a large float32 product (docs/math.md §2, §4; ``schmidt.costs``).
"""

from __future__ import annotations

from dataclasses import dataclass

from artent.attention.plan import EXACT_TOKENS
from artent.reading.pending import PendingUpdate
from artent.schmidt.costs import exact_cost
from artent.sites import chain
from artent.study.estimate.architecture import linear_layers
from artent.study.estimate.disk import measures

__all__ = ["Work", "Worker"]

EIGENVALUES = 20  # of a T×T matrix in float64, times T³
DOUBLE = 2  # a product in float64, over one in float32
RANK, STEPS = 32, 6  # of the streamed estimate
CHAINS = 1 << 41  # what the chains of one model may take (measuring.chain)
NULL_HEADS = 32  # at most so many heads have a Gaussian null (measuring.nulls)
LARGE = 1024  # from this size on nulls of dense updates are of fewer draws (measuring.update_nulls)


@dataclass(frozen=True)
class Work:
    """Operations: ``training`` in the dtype that is trained in, ``measuring`` in float32 or what stands for it."""

    training: float = 0.0
    measuring: float = 0.0

    def __add__(self, other):
        return Work(self.training + other.training, self.measuring + other.measuring)

    def __mul__(self, times):
        return Work(self.training * times, self.measuring * times)


class Worker:
    """The work of the stages of ``config`` on one device, whose processes all train on texts of their own."""

    def __init__(self, config, architecture, packed=False):
        self.config, self.a, self.packed = config, architecture, packed
        plain = architecture.model(config.model.dtype)
        self.products = sum(m * n for m, n in linear_layers(plain).values()) + architecture.vocab * architecture.hidden
        self.texts = config.measure.loss_texts + (config.measure.loss_texts // 2 or 1)

    def base(self):
        """The pretraining of a small model, and what is measured of the base and of the untrained model."""
        config, measure = self.config, self.config.measure
        found = self._model() + self._growth(measure.texts, measure.lengths) * 2  # treated in two ways
        if config.model.small:
            found += Work(config.model.pretrain_steps * self.step(None))
        if config.model.small or "untrained" in config.controls:
            found += self._model(chains=False)
        heads = min(NULL_HEADS, self.a.layers * self.a.heads)
        return found + Work(0, measure.null_draws * heads * self._spectra(measure.lengths))

    def tune(self, trained):
        """One fine-tuning with all its measurements."""
        measure, times = self.config.measure, measures(self.config)
        once = self._profiles(trained) + self._growth(measure.step_texts, (measure.on_the_way,))
        once += Work(0, self._forward(self.texts, self.config.data.context))
        steps = self.config.training.steps
        return Work(steps * self.step(trained)) + once * times + self._model() + self._nulls(trained)

    def vary(self, trained):
        """One run of the sweep: profiles and attention at its start and end, and the loss."""
        measure = self.config.measure
        once = self._profiles(trained) + self._growth(measure.sweep_texts, (measure.length,))
        loss = Work(0, self._forward(self.texts, self.config.data.context))
        return Work(self.config.training.steps * self.step(trained)) + once * 2 + loss

    def control(self):
        """One broken model: its attention and its samples."""
        measure = self.config.measure
        return self._growth(measure.texts, (measure.length,)) + self._samples()

    def step(self, trained):
        """Of the optimizer, on one device; None: of the pretraining."""
        config, T = self.config, self.config.data.context
        training = config.training
        tokens = training.batch * training.accumulation * T
        added = trained.trainable if trained is not None and trained.method.kind != "full-ft" else 0
        every = 2 * (self.products + added)  # a forward pass, which is as much as the gradients of all inputs
        again = every - 2 * self.a.vocab * self.a.hidden if training.checkpointing else 0  # all but the head
        weights = 2 * every + again + 2 * self._trained(trained)
        attention = self._attention(T) * (3.5 + training.checkpointing)
        return tokens * (weights + attention)

    def _trained(self, trained):
        """How many of the weights that products take are trained: a lookup in the embedding is none."""
        if trained is None or (trained.method.kind == "full-ft" and trained.method.train == "all"):
            return self.products
        return trained.trainable

    def _attention(self, T):
        """Of a token among T, in the forward pass; a mask of packed texts hides no work."""
        return (4 if self.packed else 2) * T * self.a.queries * self.a.layers

    def _forward(self, texts, T):
        return texts * T * (2 * self.products + 2 * T * self.a.queries * self.a.layers)

    def _samples(self):
        measure = self.config.measure
        return Work(0, self._forward(measure.texts, measure.length))

    def _model(self, chains=True):
        """Growth, chains and samples of one model."""
        measure = self.config.measure
        found = self._growth(measure.texts, measure.lengths) + self._samples()
        if chains:
            a_head = 2 * 10 * measure.length**3
            found += Work(0, min(2 * CHAINS, measure.chain_texts * self.a.layers * self.a.heads * a_head))
        return found

    def _growth(self, texts, lengths):
        heads = texts * self.a.layers * self.a.heads
        return Work(0, heads * self._spectra(lengths) + self._forward(texts, max(lengths)))

    def _spectra(self, lengths):
        """S_ext of one head of one text at all lengths."""
        D, exact = self.a.head_dim, [T for T in lengths if T <= EXACT_TOKENS]
        found = sum(2 * STEPS * T * T * (D + RANK) for T in lengths if T > EXACT_TOKENS)
        if exact:
            T = max(exact)
            found += DOUBLE * (2 * T * T * D + 2 * T**3) + EIGENVALUES * sum(T**3 for T in exact)
        return found

    def _profiles(self, trained):
        return Work(0, sum(profile_cost(shape, trained.method.rank) for shape in trained.shapes))

    def _nulls(self, trained):
        """A Haar null a module, a Gaussian one a shape."""
        total, rank = 0.0, trained.method.rank
        for shape in trained.shapes:
            large = rank is None and min(shape) > LARGE
            haar = 1 if large else self.config.measure.null_draws
            frames = 8 * max(shape) * min(shape) * (min(*shape, rank) if rank else min(shape))
            total += haar * (profile_cost(shape, rank) + frames)
        for shape in set(trained.shapes):
            total += self.config.measure.null_draws * profile_cost(shape, rank)
        return Work(0, total)


def profile_cost(shape, rank):
    """Of the exact profile of one update."""
    if rank is not None:
        return 2 * PendingUpdate("", shape, rank, None).cost
    sites = chain(shape)
    return 2 * exact_cost(sites, 1.0, sites.bonds)
