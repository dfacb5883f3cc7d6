"""Records of studies that nobody ran: every claim's effect is a number here, so that a test can turn it.

``records(Effects(...))`` gives what ``results.jsonl`` of a finished study holds, ``write`` puts it into a folder. A
model of two layers with four heads, modules of 64×64, seconds at most.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import log

import torch
from artent.study.config import Method, StudyConfig, Sweep, as_config
from study.synthetic_values import (
    CUT,
    DIMS,
    HEADS,
    LAYERS,
    LENGTHS,
    MODULES,
    SIDE,
    STEPS,
    TEXTS,
    attention,
    chain,
    curves,
    fit,
    growth,
    head_shift,
    line,
    noise,
    profile,
    profile_null,
    sample_file,
    tuned,
)

__all__ = [
    "CONTROLS",
    "CUT",
    "DIMS",
    "HEADS",
    "LAYERS",
    "LENGTHS",
    "METHODS",
    "MODULES",
    "STEPS",
    "SWEEP",
    "TEXTS",
    "Effects",
    "line",
    "records",
    "write",
]

METHODS = (
    Method("full-ft", 1e-3),
    Method("full-ft", 2e-3, train="targets"),
    Method("lora", 2e-2, rank=4),
    Method("lora", 1e-2, rank=16),
    Method("mps", 1e-2, rank=16, chi=8),
)
SWEEP = (
    Sweep(of="lora-r16", vary="learning_rate", times=(0.25, 4.0)),
    Sweep(of="lora-r16", vary="alpha", times=(0.25, 4.0)),
    Sweep(of="lora-r16", vary="rank", values=(2, 8, 32)),
    Sweep(of="lora-r16", vary="init", values=("pissa", "orthogonal")),
)
CONTROLS = ("untrained", "lora-10x", "negated", "haar", "random")


@dataclass(frozen=True)
class Effects:
    """How large each effect is, in nats where nothing else is said. The defaults are the paper's findings.

    Attributes:
        seeds: how many seeds a method.
        methods, sweep, controls: as in a StudyConfig; () for none.
        rise: "volume" (S ∝ ln D on the way up), "log" (∝ ln of the bond, as Cardy's) or "flat".
        slope: of the volume law, relative to random factors of the same rank.
        lora_dip, full_dip: further depth at the cut beyond the rank's own; full_dip also of full FT of q, v.
        mps_dip: the same for MPS.
        update_noise: between seeds, of every bond. off_cut: largest distance from the Haar null.
        alike_updates: no method differs from another but for noise (all have the profile of a full-rank update).
        varied: by how much a sweep's end values move depth and slope, ``{vary: nats}``; "*" for all others.
        c, cardy: S_ext = c ln T + b; form of A's bonds: "calabrese-cardy", "linear" or "flat".
        tuned_cardy: the same of fine-tuned models, where it is another. chain_noise: of every bond of A, a head.
        null_c: of the nulls, in the order uniform, window, Gaussian logits, untrained.
        text_noise: of c between texts.
        seed_noise: of a head's S_ext between seeds. method_shift: of a head's S_ext between methods.
        attention_drift: shift of all heads' S_ext from the first step to the last, the same for all methods.
        attention_varied: by how much a sweep's end values move S_ext, ``{vary: nats}``; "*" for all others.
        sweep_noise: of a head's S_ext in a swept run, its own.
        broken: ``{(vary, value): loss}`` at the end of swept runs that learned nothing; losses begin at 3.
        control_shift: of a head's S_ext in untrained and lora-10x; the other controls have a third of it.
        bulk: T_eff/T of the random bulk beside A's largest Schmidt probability; bulk_noise: of S at the cut, a head.
        learned: fall of the loss, nats a token. loss_noise: of its end between seeds. method_loss: by how much a method
            ends lower than the one before it. mps_loss: MPS's end above that of LoRA of its rank.
        chain, step_records, samples: whether there are such records (samples: files in the folder).
        beyond_bound: what a LoRA profile has above its rank bound, a fault.
    """

    seeds: int = 4
    methods: tuple = METHODS
    sweep: tuple = SWEEP
    controls: tuple = CONTROLS
    rise: str = "volume"
    slope: float = 1.0
    lora_dip: float = 0.4
    full_dip: float = 0.0
    mps_dip: float = 0.4
    update_noise: float = 0.01
    off_cut: float = 0.05
    alike_updates: bool = False
    varied: dict | None = None
    c: float = 0.5
    cardy: str = "calabrese-cardy"
    tuned_cardy: str | None = None
    chain_noise: float = 0.01
    null_c: tuple = (0.2, 0.95, 0.75, 0.25)
    text_noise: float = 0.02
    seed_noise: float = 0.02
    method_shift: float = 0.01
    attention_drift: float = 0.02
    attention_varied: dict | None = None
    sweep_noise: float = 0.002
    broken: dict = field(default_factory=dict)
    control_shift: float = 0.5
    bulk: float = 1.0
    bulk_noise: float = 0.05
    learned: float = 1.0
    loss_noise: float = 0.01
    method_loss: float = 0.0
    mps_loss: float = 0.0
    chain: bool = True
    step_records: bool = True
    samples: bool = False
    beyond_bound: float = 0.0

    @cached_property
    def config(self):
        """The study's configuration."""
        values = StudyConfig("synthetic").to_dict()
        values["model"] |= {"layers": LAYERS, "width": SIDE, "heads": HEADS, "kv_heads": HEADS, "mlp_width": 64}
        values["data"] |= {"context": 64}
        values["training"] |= {"steps": STEPS[-1]}
        values["measure"] |= {"every": 5, "lengths": LENGTHS, "texts": TEXTS, "sweep_texts": 2, "step_texts": 2}
        values |= {"seeds": tuple(range(self.seeds)), "controls": self.controls}
        return replace(as_config(values), methods=self.methods, sweep=self.sweep)


def records(effects=None, folder=None):
    """The records of a finished study with these effects. ``folder`` takes the sample files, if there are any."""
    return [json.loads(json.dumps(r, default=lambda x: x.tolist())) for r in _records(effects or Effects(), folder)]


def write(folder, effects=None):
    """A study's folder with these effects; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record) for record in records(effects, folder)]
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _records(e, folder):
    config = e.config
    yield {
        "kind": "setup",
        "config": config.to_dict(),
        "texts": {"old": ["english", 1000, "0"], "new": ["python", 1000, "1"]},
        "versions": {"artent": "0"},
        "machine": "none",
        "time": "2026-01-01 00:00 UTC",
    }
    yield from _stage(("base", config.model.seed), _base(e, folder))
    for method, seed in config.runs:
        yield from _stage((method.name, seed), _run(e, method, seed, folder))
    for v in config.variations:
        yield from _stage(v.stage, _variation(e, v))
    for control in config.controls:
        if control not in ("untrained", "lora-10x"):
            for seed in config.seeds:
                yield from _stage((control, seed), _control(e, control, seed, folder))
    yield {"kind": "finished", "seconds": 1.0}


def _stage(stage, inside):
    at = dict(zip(("method", "seed", "setting"), stage))
    for record in ({"kind": "start"}, *inside, {"kind": "done", "seconds": 1.0}):
        yield {**at, **record}


def _base(e, folder):
    for name in ("untrained", "base"):
        s_ext = curves(e, e.null_c[3] if name == "untrained" else e.c)
        if name == "untrained":
            s_ext = s_ext + head_shift("untrained", e.control_shift)
        yield growth(name, s_ext)
        yield fit(name, s_ext.mean((1, 3)).T)
        yield from _further(e, name, ("untrained",) if name == "untrained" else ("base",), folder)
    for null, c in zip(("uniform causal mask", "local window of 4", "Gaussian logits"), e.null_c):
        draws = c * torch.tensor(LENGTHS, dtype=torch.float64).log() + 0.2 + noise(null, shape=(3, 1), scale=0.01)
        yield {"kind": "growth-null", "model": null, "lengths": LENGTHS, "s_ext": draws}
        yield fit(null, draws)
    for step, loss in ((0, 5.0), (10, 2.0)):
        yield {"kind": "loss", "step": step, "text": "old", "loss": loss}


def _run(e, method, seed, folder):
    yield {"kind": "parameters", "trainable": (method.rank or 100) * 128, "total": 20_000}
    ends = {"new": 3.0 - e.learned + _loss(e, method, seed), "old": 2.3}
    for step in STEPS:
        for text, start in (("new", 3.0), ("old", 2.0)):
            loss = start + (ends[text] - start) * step / STEPS[-1]
            yield {"kind": "loss", "step": step, "text": text, "loss": loss}
        for module in MODULES:
            yield profile(e, method, (method.name, seed), module, step)
        if e.step_records:
            yield attention(tuned(e, method.name, seed, step)[-2:-1, :, -2:], step, LENGTHS[-2:-1])
    yield growth(method.name, tuned(e, method.name, seed))
    yield fit(method.name, tuned(e, method.name, seed).mean((1, 3)).T)
    yield from _further(e, method.name, (method.name, seed), folder)
    for module in MODULES:
        yield profile_null(e, method, (method.name, seed), module)


def _variation(e, v):
    step = STEPS[-1]
    own = next(m for m in e.methods if m.name == v.of)
    far = _distance(v, own)
    for module in MODULES:
        yield profile(e, v.method, (v.of, v.seed), module, step, _of(e.varied, v.vary, 0.3) * far)
    s_ext = tuned(e, v.of, v.seed) + _of(e.attention_varied, v.vary, 0.01) * far
    yield attention(s_ext[-1:, :, -2:] + head_shift(v.stage, e.sweep_noise), step, LENGTHS[-1:])
    settings = {k: getattr(v.method, k) for k in ("learning_rate", "rank", "alpha", "chi", "init")}
    loss = 3.0 - e.learned + _loss(e, own, v.seed) + 0.05 * far**2
    if (v.vary, v.value) in e.broken:
        loss = e.broken[(v.vary, v.value)]
    about = {"of": v.of, "vary": v.vary, "value": v.value, **settings}
    yield {"kind": "sweep", **about, "loss": loss, "start": 3.0}


def _control(e, control, seed, folder):
    s_ext = tuned(e, e.config.reference.name, seed)[-1] + head_shift((control, seed), e.control_shift / 3)
    entropy = torch.full((LAYERS, TEXTS, HEADS), 2.0)
    of = e.config.reference.name
    record = {"kind": "control", "control": control, "from": of, "s_ext": s_ext, "entropy": entropy}
    yield record | ({"samples": sample_file(e, (control, seed), folder)} if e.samples else {})


def _further(e, name, model, folder):
    """Chain and samples of a model, where there are any."""
    if e.chain:
        yield chain(e, name, model)
    if e.samples:
        yield {"kind": "samples", "model": name, "file": sample_file(e, model, folder)}


# Losses and sweeps.


def _loss(e, method, seed):
    names = [m.name for m in e.methods]
    at = names.index(method.name) if method.name in names else 0
    own = e.mps_loss if method.kind == "mps" else 0.0
    return noise("loss", method.name, seed, scale=e.loss_noise).item() - e.method_loss * at + own


def _distance(v, own):
    """How far a value is from the method's own, in (−1, 1): the sweep's effects grow with it."""
    if v.vary == "init":
        return 1.0 if v.value == "pissa" else -1.0
    value = own.lora_alpha if v.vary == "alpha" else getattr(own, v.vary)
    return max(-1.0, min(1.0, log(v.value / value) / log(4)))


def _of(effects, vary, default):
    effects = effects or {}
    return effects.get(vary, effects.get("*", default))
