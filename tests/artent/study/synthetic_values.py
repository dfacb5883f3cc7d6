"""The values of a study that nobody ran: attention and updates with the effects that ``synthetic.Effects`` names."""

from __future__ import annotations

import zlib
from dataclasses import asdict
from functools import cache
from math import exp, log, pi, prod, sin

import torch
from artent import theory

LAYERS, HEADS, TEXTS, SIDE = 2, 4, 6, 64
DIMS, CUT, SITES = (2,) * 12, 6, [[2] * 6, [2] * 6]
MODULES = [f"model.layers.{layer}.self_attn.{p}" for layer in range(LAYERS) for p in ("q_proj", "v_proj")]
LENGTHS, STEPS = (8, 16, 32, 64), (0, 5, 10)
ATTENTION_DIMS = (2,) * 12  # A of 64 × 64


def noise(*key, shape=(), scale=1.0):
    """Standard normals fixed by ``key``, whatever else is drawn."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


# Attention.


def curves(e, c):
    """S_ext (lengths, layers, texts, heads) of a model whose heads all grow with c."""
    T = torch.tensor(LENGTHS, dtype=torch.float64).log()[:, None, None, None]
    heads = 0.3 + 0.1 * noise("heads", shape=(LAYERS, 1, HEADS)).abs()
    return (c + noise("texts", shape=(1, 1, TEXTS, 1), scale=e.text_noise)) * T + heads


def head_shift(key, scale):
    """A shift of every head, the same for all texts."""
    return noise("shift", key, shape=(LAYERS, 1, HEADS), scale=scale)


def tuned(e, name, seed, step=STEPS[-1]):
    part = step / STEPS[-1]
    shift = e.control_shift if name == "lora-10x" else e.method_shift
    moved = e.attention_drift + head_shift(name, shift) + head_shift((name, seed), e.seed_noise)
    return curves(e, e.c) + part * moved


def growth(name, s_ext):
    entropy = torch.full((LAYERS, TEXTS, HEADS), 2.0) + 0.01 * noise(name, shape=(LAYERS, TEXTS, HEADS))
    return {"kind": "growth", "model": name, "lengths": LENGTHS, "s_ext": s_ext, "entropy": entropy}


def attention(s_ext, step, lengths):
    return {"kind": "attention", "step": step, "lengths": lengths, "s_ext": s_ext, "entropy": s_ext[-1]}


def fit(name, per_text):
    fit = theory.fit_growth(LENGTHS, per_text, bootstrap=100)
    return {"kind": "fit", "model": name, **asdict(fit), "verdict": fit.verdict, "layer_c": [fit.c] * LAYERS}


def chain(e, name, model):
    l, N = torch.arange(1, 12, dtype=torch.float64), 12
    form = {
        "calabrese-cardy": 1.2 / 3 * (N / pi * (pi * l / N).sin()).log() + 0.5,
        "linear": 0.5 * log(2) * torch.minimum(l, N - l) + 0.1,
        "flat": torch.full((11,), 1.5, dtype=torch.float64),
    }[e.cardy if name in ("base", "untrained") else e.tuned_cardy or e.cardy]
    entropy = form + noise("chain", model, shape=(LAYERS, HEADS, 11), scale=e.chain_noise)
    top = torch.linspace(0.1, 0.8, LAYERS * HEADS, dtype=torch.float64).reshape(LAYERS, HEADS)
    s_cut = torch.special.entr(top) + torch.special.entr(1 - top) + (1 - top) * (log(64 * e.bulk) - 0.5)
    s_cut = s_cut + noise("cut", model, shape=(LAYERS, HEADS), scale=e.bulk_noise)
    spread = torch.full((LAYERS, HEADS, 11), 0.02)
    given = {"dims": ATTENTION_DIMS, "cut": 6, "entropy": entropy, "spread": spread, "top": top, "s_cut": s_cut}
    return {"kind": "chain", "model": name, **given}


def sample_file(e, model, folder):
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


def entropies(e, method, stage, module, moved):
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


def profile(e, method, stage, module, step, moved=0.0):
    S = entropies(e, method, stage, module, moved)
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


def profile_null(e, method, stage, module):
    S = line(method.rank)
    bound = theory.rank_bound(DIMS, CUT, method.rank)
    haar = entropies(e, method, stage, module, 0.0) + e.off_cut * sin(1)
    if method.kind == "mps":
        bound = [min(b, log(method.chi * 2**k)) for b, k in zip(bound, (9, 8, 7, 6, 5, 4, 3, 2, 1, 2, 3))]
    nulls = {"bound": bound, "line": S, "gaussian": S, "gaussian_spread": [0.02] * 11, "haar": haar}
    return {"kind": "profile-null", "module": module, **nulls}
