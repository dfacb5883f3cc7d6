"""Records of studies that nobody ran: every claim's effect is a number here, so that a test can turn it.

``records(Effects(...))`` gives what ``results.jsonl`` of a finished study holds, ``write`` puts it into a folder. A
model of two layers with four heads, modules of 64×64, seconds at most.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from math import exp, log, pi, prod, sin

import torch
from artent import theory
from artent.study.config import Method, StudyConfig, Sweep, as_config

LAYERS, HEADS, TEXTS, SIDE = 2, 4, 6, 64
DIMS, CUT, SITES = (2,) * 12, 6, [[2] * 6, [2] * 6]
MODULES = [f"model.layers.{layer}.self_attn.{p}" for layer in range(LAYERS) for p in ("q_proj", "v_proj")]
LENGTHS, STEPS = (8, 16, 32, 64), (0, 5, 10)
ATTENTION_DIMS = (2,) * 12  # A of 64 × 64

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
        null_c: of the nulls, in the order uniform, window, Gaussian logits, untrained.
        text_noise: of c between texts.
        seed_noise: of a head's S_ext between seeds. method_shift: of a head's S_ext between methods.
        attention_drift: shift of all heads' S_ext from the first step to the last, the same for all methods.
        attention_varied: by how much a sweep's end values move S_ext, ``{vary: nats}``; "*" for all others.
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
    null_c: tuple = (0.2, 0.95, 0.75, 0.25)
    text_noise: float = 0.02
    seed_noise: float = 0.02
    method_shift: float = 0.01
    attention_drift: float = 0.02
    attention_varied: dict | None = None
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


def noise(*key, shape=(), scale=1.0):
    """Standard normals fixed by ``key``, whatever else is drawn."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


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
        s_ext = _curves(e, e.null_c[3] if name == "untrained" else e.c)
        if name == "untrained":
            s_ext = s_ext + _heads("untrained", e.control_shift)
        yield _growth(name, s_ext)
        yield _fit(name, s_ext.mean((1, 3)).T)
        yield from _further(e, name, ("untrained",) if name == "untrained" else ("base",), folder)
    for null, c in zip(("uniform causal mask", "local window of 4", "Gaussian logits"), e.null_c):
        draws = c * torch.tensor(LENGTHS, dtype=torch.float64).log() + 0.2 + noise(null, shape=(3, 1), scale=0.01)
        yield {"kind": "growth-null", "model": null, "lengths": LENGTHS, "s_ext": draws}
        yield _fit(null, draws)
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
            yield _profile(e, method, (method.name, seed), module, step)
        if e.step_records:
            yield _attention(_tuned(e, method.name, seed, step)[-2:-1, :, -2:], step, LENGTHS[-2:-1])
    yield _growth(method.name, _tuned(e, method.name, seed))
    yield _fit(method.name, _tuned(e, method.name, seed).mean((1, 3)).T)
    yield from _further(e, method.name, (method.name, seed), folder)
    for module in MODULES:
        yield _null(e, method, (method.name, seed), module)


def _variation(e, v):
    step = STEPS[-1]
    own = next(m for m in e.methods if m.name == v.of)
    far = _distance(v, own)
    for module in MODULES:
        yield _profile(e, v.method, (v.of, v.seed), module, step, _of(e.varied, v.vary, 0.3) * far)
    s_ext = _tuned(e, v.of, v.seed) + _of(e.attention_varied, v.vary, 0.01) * far
    yield _attention(s_ext[-1:, :, -2:] + noise(v.stage, shape=(LAYERS, 1, HEADS), scale=0.002), step, LENGTHS[-1:])
    settings = {k: getattr(v.method, k) for k in ("learning_rate", "rank", "alpha", "chi", "init")}
    loss = 3.0 - e.learned + _loss(e, own, v.seed) + 0.05 * far**2
    yield {"kind": "sweep", "of": v.of, "vary": v.vary, "value": v.value, **settings, "loss": loss}


def _control(e, control, seed, folder):
    s_ext = _tuned(e, e.config.reference.name, seed)[-1] + _heads((control, seed), e.control_shift / 3)
    entropy = torch.full((LAYERS, TEXTS, HEADS), 2.0)
    of = e.config.reference.name
    record = {"kind": "control", "control": control, "from": of, "s_ext": s_ext, "entropy": entropy}
    yield record | ({"samples": _file(e, (control, seed), folder)} if e.samples else {})


def _further(e, name, model, folder):
    """Chain and samples of a model, where there are any."""
    if e.chain:
        yield _chain(e, name, model)
    if e.samples:
        yield {"kind": "samples", "model": name, "file": _file(e, model, folder)}


# Attention.


def _curves(e, c):
    """S_ext (lengths, layers, texts, heads) of a model whose heads all grow with c."""
    T = torch.tensor(LENGTHS, dtype=torch.float64).log()[:, None, None, None]
    heads = 0.3 + 0.1 * noise("heads", shape=(LAYERS, 1, HEADS)).abs()
    return (c + noise("texts", shape=(1, 1, TEXTS, 1), scale=e.text_noise)) * T + heads


def _heads(key, scale):
    """A shift of every head, the same for all texts."""
    return noise("shift", key, shape=(LAYERS, 1, HEADS), scale=scale)


def _tuned(e, name, seed, step=STEPS[-1]):
    part = step / STEPS[-1]
    shift = e.control_shift if name == "lora-10x" else e.method_shift
    moved = e.attention_drift + _heads(name, shift) + _heads((name, seed), e.seed_noise)
    return _curves(e, e.c) + part * moved


def _growth(name, s_ext):
    entropy = torch.full((LAYERS, TEXTS, HEADS), 2.0) + 0.01 * noise(name, shape=(LAYERS, TEXTS, HEADS))
    return {"kind": "growth", "model": name, "lengths": LENGTHS, "s_ext": s_ext, "entropy": entropy}


def _attention(s_ext, step, lengths):
    return {"kind": "attention", "step": step, "lengths": lengths, "s_ext": s_ext, "entropy": s_ext[-1]}


def _fit(name, per_text):
    fit = theory.fit_growth(LENGTHS, per_text, bootstrap=100)
    return {"kind": "fit", "model": name, **asdict(fit), "verdict": fit.verdict, "layer_c": [fit.c] * LAYERS}


def _chain(e, name, model):
    l, N = torch.arange(1, 12, dtype=torch.float64), 12
    form = {
        "calabrese-cardy": 1.2 / 3 * (N / pi * (pi * l / N).sin()).log() + 0.5,
        "linear": 0.5 * log(2) * torch.minimum(l, N - l) + 0.1,
        "flat": torch.full((11,), 1.5, dtype=torch.float64),
    }[e.cardy]
    entropy = form + noise("chain", model, shape=(LAYERS, HEADS, 11), scale=0.01)
    top = torch.linspace(0.1, 0.8, LAYERS * HEADS, dtype=torch.float64).reshape(LAYERS, HEADS)
    s_cut = torch.special.entr(top) + torch.special.entr(1 - top) + (1 - top) * (log(64 * e.bulk) - 0.5)
    s_cut = s_cut + noise("cut", model, shape=(LAYERS, HEADS), scale=e.bulk_noise)
    spread = torch.full((LAYERS, HEADS, 11), 0.02)
    given = {"dims": ATTENTION_DIMS, "cut": 6, "entropy": entropy, "spread": spread, "top": top, "s_cut": s_cut}
    return {"kind": "chain", "model": name, **given}


def _file(e, model, folder):
    """Writes attention rows and outputs of a model; returns the file's name in the folder."""
    from safetensors.torch import save_file

    rows, width = 4, 8
    seed = {"untrained": e.control_shift, "lora-10x": e.control_shift, "negated": e.control_shift / 3}
    scale = seed.get(model[0], e.seed_noise + (e.control_shift / 3 if model[0] in ("haar", "random") else 0))
    logits = noise("rows", shape=(LAYERS, TEXTS, HEADS, rows, 64)) + noise(
        "rows", model, shape=(LAYERS, TEXTS, HEADS, rows, 64), scale=scale if model != ("base",) else 0
    )
    outputs = noise("outputs", shape=(LAYERS, TEXTS, rows, HEADS * width)) + noise(
        "outputs", model, shape=(LAYERS, TEXTS, rows, HEADS * width), scale=scale if model != ("base",) else 0
    )
    name = f"samples/{'-'.join(map(str, model))}.safetensors"
    (folder / "samples").mkdir(exist_ok=True)
    save_file({"rows": logits.softmax(-1).half(), "outputs": outputs.float()}, folder / name)
    return name


# Updates.


@cache
def line(rank):
    """What random factors of the rank have at every bond, a full matrix without one. Not to be written to."""
    return torch.tensor(
        theory.page_line(DIMS) if rank is None else theory.lora_line(DIMS, CUT, rank), dtype=torch.float64
    )


def _measured(e, method, stage, module, moved):
    rank = None if e.alike_updates else method.rank
    S = line(rank)
    l = torch.arange(1, 12, dtype=torch.float64)
    position = torch.minimum(l, 12 - l)
    if e.rise == "volume":
        S = S * e.slope
    elif e.rise == "log":
        S = 0.3 + 0.8 * position.log()
    else:
        S = torch.full_like(l, 0.6)
    dip = {"full-ft": e.full_dip, "lora": e.lora_dip, "mps": e.mps_dip}["full-ft" if rank is None else method.kind]
    S = S - (dip + moved) * torch.exp(-((l - CUT) ** 2))
    S = S + noise("update", stage, module, shape=(11,), scale=e.update_noise)
    return S.clamp(min=0.01)


def _profile(e, method, stage, module, step, moved=0.0):
    S = _measured(e, method, stage, module, moved)
    if step == 0:
        S = S * 0
    elif method.rank is not None:
        bound = torch.tensor(theory.rank_bound(DIMS, CUT, method.rank), dtype=torch.float64)
        S = torch.minimum(S, bound) + e.beyond_bound
    k = max(1, round(exp(float(S[CUT - 1]))))
    return {
        "kind": "profile",
        "module": module,
        "step": step,
        "entropy": S,
        "lower": S,
        "upper": S,
        "cut_probabilities": [1 / k] * k,
        "schmidt_ranks": [min(prod(DIMS[:l]), prod(DIMS[l:])) for l in range(1, 12)],
        "sites": SITES,
        "rank": method.rank,
        "alpha": 1.0,
        "log_base": None,
        "estimator": "exact",
    }


def _null(e, method, stage, module):
    S = line(method.rank)
    bound = theory.rank_bound(DIMS, CUT, method.rank)
    haar = _measured(e, method, stage, module, 0.0) + e.off_cut * sin(1)
    if method.kind == "mps":
        bound = [min(b, log(method.chi * 2**k)) for b, k in zip(bound, (9, 8, 7, 6, 5, 4, 3, 2, 1, 2, 3))]
    nulls = {"bound": bound, "line": S, "gaussian": S, "gaussian_spread": [0.02] * 11, "haar": haar}
    return {"kind": "profile-null", "module": module, **nulls}


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
