"""What a study writes: checkpoints while a method trains, and what stays in its folder."""

from __future__ import annotations

from artent.sites import chain

__all__ = ["Disk", "disk_use"]

DIGITS = 21  # bytes of a number in results.jsonl
WORDS = 700  # of the other entries of a record
REPORT = 40 << 20  # page, figures, tables
RECORDED = 3  # results.jsonl, and the same numbers as CSV and Parquet
CHECKPOINTS = 3  # two are kept, and the older goes when a third is whole


class Disk(dict):
    """Bytes by what they are: checkpoints (the largest method's, gone when it is done), first weights, base model,
    adapters, samples, records."""

    @property
    def total(self):
        return sum(self.values())


def disk_use(config, architecture, trained):
    """The :class:`Disk` of a study; ``trained`` is {method name: ``Trained``}."""
    runs = config.runs
    full = [t for t in trained.values() if t.method.kind == "full-ft"]
    saving = config.training.save_every is not None and config.training.save_every < config.training.steps
    checkpoint = max((t.saved + 2 * t.gradients for t in trained.values()), default=0)
    small = config.model.small
    weights = sum(p.nbytes for p in architecture.model(config.model.dtype).parameters())
    if small and saving:
        checkpoint = max(checkpoint, 3 * weights)  # of the pretraining
    adapters = [t for method, _ in runs if (t := trained[method.name]).method.kind != "full-ft"]
    return Disk(
        checkpoints=CHECKPOINTS * checkpoint if saving else 0,
        first_weights=full[0].target_weights if full and not small else 0,
        base=weights if small else 0,
        adapters=sum(t.gradients for t in adapters),
        samples=_samples(config, architecture),
        records=RECORDED * _records(config, architecture, trained) + REPORT,
    )


def _samples(config, a):
    """Rows of attention in float16 and outputs in float32, of every model that is compared."""
    measure = config.measure
    places = a.layers * measure.texts * measure.rows
    made = len([c for c in config.controls if c in ("negated", "haar", "random")]) * len(config.seeds)
    models = 1 + (config.model.small or "untrained" in config.controls) + len(config.runs) + made
    return models * places * (2 * a.heads * measure.length + 4 * a.queries)


def _records(config, a, trained):
    measure, heads = config.measure, a.layers * a.heads
    lengths, at_bonds = len(measure.lengths), 2 * heads * 2 * measure.length.bit_length()
    growth = heads * measure.texts * (4 * lengths + 3) + 3 * heads
    total = (growth + at_bonds) * 4  # the untrained model, the base, and the base treated in two ways
    for method, _ in config.runs:
        total += growth + at_bonds
        total += (measures(config) + 2) * _profiles(trained[method.name])
        total += measures(config) * heads * measure.step_texts * 7
    total += len(config.seeds) * len(config.controls) * heads * measure.texts * 2
    for variation in config.variations:
        total += 2 * _profiles(trained[variation.of]) + 7 * heads * measure.sweep_texts
    return DIGITS * total + WORDS * measures(config) * sum(len(trained[m.name].shapes) for m, _ in config.runs)


def _profiles(of):
    """Numbers in one measurement's profiles: three a bond, and the spectrum at the cut."""
    return sum(4 * len(chain(shape).bonds) + min(*shape, of.method.rank or max(shape)) for shape in of.shapes)


def measures(config, every=None):
    """How often a run is measured: at its start, every so many steps, and at its end."""
    steps, every = config.training.steps, every or config.measure.every
    return 1 + steps // every + bool(steps % every)
