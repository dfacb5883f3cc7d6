"""What a training step holds on a device, from the sizes of the model: nothing is run.

A decoder block of LLaMA's kind, of width h, with queries q and keys k wide and an MLP f wide, keeps for its backward
pass, in numbers a token: the inputs of its two norms (h each, float32) and, where the norms train, what they scale; the
rotated queries and keys, the values and the output of attention (2q + 2k); gate, its activation and up (3f); and the
input of every linear layer that trains or has an adapter. Logits are float32: the loss keeps V numbers a token, and
its backward pass holds three such arrays at once.

Of other architectures parameters are exact, and activations are counted as if they were of this kind.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from artent.study.estimate.architecture import linear_layers

__all__ = ["StepMemory", "step_memory"]

FLOAT = 4
HALF = 2
_READS = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "o_proj": "out", "gate_proj": "mlp",
          "up_proj": "mlp", "down_proj": "down"}  # fmt: skip


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device while it trains.

    ``peak`` is less than the sum: gradients come as activations go. ``activations`` has autocast's copies of weights
    in it; ``gathered`` is what FSDP puts together for a moment, or DistributedDataParallel's buckets.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    gathered: int
    peak: int

    def to_dict(self):
        return asdict(self)


def step_memory(architecture, model, method, training, dtype, *, context, packed=False, targets=(), devices=1):
    """The :class:`StepMemory` of ``method``; ``model`` is what it trains, on the meta device.

    ``context`` is the tokens of a text, ``packed`` says that several texts share one and a mask parts them.
    """
    half = dtype == "bfloat16" and not (method.kind == "full-ft" and method.train == "all")  # what it trains is float32
    sizes = _Sizes(
        architecture,
        method,
        frozenset(targets),
        weight=HALF if half else FLOAT,
        number=HALF if half or training.bf16 else FLOAT,
        cast=training.bf16 and not half,
        autocast=training.bf16,
        mask=context if packed else 0,
    )
    shared = devices if training.parallel == "fsdp" and method.kind == "full-ft" else 1  # adapters go with DDP
    weights = sum(p.nbytes for p in model.parameters())
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    layers, tokens = architecture.layers, training.batch * context
    timeline = _Timeline(sizes, model, tokens, training, shared, gradients)
    embedding = model.get_input_embeddings().weight.nbytes
    if devices == 1:
        gathered = 0
    elif shared > 1:  # the root of the tree, and a block while the next one comes
        gathered = embedding * (1 if architecture.tied else 2) + 2 * timeline.block_weights
        gathered = round(gathered * (1 - 1 / shared))
    else:
        gathered = gradients
    kept = layers * (sizes.boundary() if training.checkpointing else sizes.block()) + sizes.after()
    kept = tokens * (kept + (sizes.block() if training.checkpointing else 0)) + timeline.casts()
    return StepMemory(
        weights=weights // shared,
        gradients=gradients // shared,
        optimizer=2 * gradients // shared,
        activations=kept,
        logits=3 * FLOAT * architecture.vocab * tokens,
        gathered=gathered,
        peak=(weights + 2 * gradients) // shared + gathered + timeline.peak(),
    )


@dataclass(frozen=True)
class _Sizes:
    """Bytes: ``weight`` of a weight and of a number of the residual stream, ``number`` of one that a product gives.

    ``autocast``: under it, and ``cast`` where it has float32 to cast. ``mask``: numbers a token and block of a mask
    that parts texts. The methods give bytes a token.
    """

    architecture: object
    method: object
    targets: frozenset
    weight: int
    number: int
    cast: bool
    autocast: bool
    mask: int

    @property
    def full(self):
        return self.method.kind == "full-ft" and self.method.train == "all"

    def boundary(self):
        """The input of a block, all that checkpointing keeps of it."""
        return self.weight * self.architecture.hidden

    def block(self):
        """What the backward pass of a block needs."""
        a = self.architecture
        h, q, f = a.hidden, a.queries, a.mlp
        keys = q if self.mask else a.keys  # under a mask keys and values are repeated for every head
        norms = 2 * (FLOAT * h + (self.weight * h if self.full else 0) + FLOAT)
        attention = self.number * (2 * q + 2 * keys + self.mask) + FLOAT * a.heads
        return norms + attention + 3 * self.number * f + self.inputs()

    def inputs(self):
        """The inputs of linear layers that train or have adapters, beyond what is kept anyway, and adapters' hidden
        states."""
        a = self.architecture
        widths = {"attention": a.hidden, "out": a.queries, "mlp": a.hidden, "down": a.mlp}
        names = _READS if self.full else [t for t in self.targets if t in _READS]
        total = 0
        for place, width in widths.items():
            count = sum(_READS[name] == place for name in names)
            total += width * self._copies(place, count)
        if self.method.rank is not None:
            total += len(self.targets) * self.method.rank * (HALF if self.autocast else FLOAT)
        return total

    def _copies(self, place, count):
        """Bytes of each number that ``count`` layers read at ``place``."""
        if not count:
            return 0
        if self.method.kind == "mps":  # keeps its input as it comes, once for all that read it
            return {"out": 0, "down": self.number}.get(place, self.weight)
        if self.method.kind == "lora":  # a copy in the adapter's dtype, float32 or autocast's
            if self.autocast:
                return count * HALF
            if self.weight == HALF:
                return count * FLOAT
        elif self.cast and place != "out":  # a cast a layer of a float32 input; MLP's product is of that dtype already
            return self.number if place == "down" else count * HALF
        return 0 if place == "out" else self.number

    def after(self):
        """The last norm, and what the head reads."""
        h = self.architecture.hidden
        return FLOAT * h + (self.weight * h + self.number * h if self.full else 0)


class _Timeline:
    """Bytes beyond weights and optimizer state, at the moments of a step that can be its peak."""

    def __init__(self, sizes, model, tokens, training, shared, gradients):
        a = sizes.architecture
        self.sizes, self.tokens, self.training, self.shared = sizes, tokens, training, shared
        self.layers, self.vocab = a.layers, a.vocab * tokens
        parameters = dict(model.named_parameters())
        embedding = model.get_input_embeddings().weight
        head = model.get_output_embeddings().weight
        linear = sum(m * n for m, n in linear_layers(model).values())
        self.block_weights = (sum(p.nbytes for p in parameters.values()) - embedding.nbytes) // self.layers
        if not a.tied:
            self.block_weights -= head.nbytes // self.layers
        self.gradients = gradients // shared
        self.embedding = embedding.nbytes if embedding.requires_grad else 0
        self.head = head.nbytes if head.requires_grad else 0
        self.block_gradients = (gradients - self.embedding - (0 if a.tied else self.head)) // self.layers
        # Under autocast the bfloat16 copies of the weights live as long as the graph that needs them.
        self.copies = HALF * linear // self.layers if sizes.cast else 0
        self.head_copy = HALF * head.numel() if sizes.cast else 0

    def peak(self):
        return round(max(self._loss(), self._head(), *map(self._block, range(self.layers)), self._end()))

    def casts(self):
        """Autocast's copies of weights at the end of a forward pass: of trained ones they are cached until then."""
        every = self.sizes.full or not self.training.checkpointing
        return self.head_copy + self.copies * (self.layers if every else 1)

    def _kept(self, blocks):
        """Of the first ``blocks`` blocks."""
        if self.training.checkpointing:
            return blocks * self.tokens * self.sizes.boundary()
        first = 0 if self.sizes.full else self.sizes.weight * self.sizes.architecture.hidden  # of no use below adapters
        return blocks * (self.tokens * self.sizes.block() + self.copies) - first * self.tokens

    @property
    def _before(self):
        """Gradients that earlier forward passes of the step have left."""
        return self.gradients if self.training.accumulation > 1 else 0

    def _loss(self):
        every = self._kept(self.layers) + self.tokens * self.sizes.after() + self.head_copy
        trained = self.casts() - self.head_copy if self.training.checkpointing and self.sizes.full else 0
        forward = (2 * FLOAT if self.sizes.number == FLOAT else HALF + 2 * FLOAT) * self.vocab + trained
        return self._before + every + max(forward, 3 * FLOAT * self.vocab)

    def _head(self):
        kept = self._kept(self.layers) + self.tokens * self.sizes.after() + self.head_copy
        return max(self._before, self.head) + kept + (FLOAT + self.sizes.number) * self.vocab

    def _block(self, at):
        """In the MLP of block ``at``, with the gradients of the blocks above."""
        a, number = self.sizes.architecture, self.sizes.number
        above = (self.head + (self.layers - at - 1) * self.block_gradients) // self.shared
        again = self.tokens * self.sizes.block() + self.copies if self.training.checkpointing else 0
        passing = self.tokens * (2 * number * a.mlp + 2 * self.sizes.weight * a.hidden)
        own = self.block_gradients // 3  # its down projection's
        return max(self._before, above + own) + self._kept(at + 1) + again + passing

    def _end(self):
        both = self.embedding if self.sizes.architecture.tied else 0  # the embedding's own, added to the head's
        return self.gradients + both + self.tokens * self.sizes.weight * self.sizes.architecture.hidden
