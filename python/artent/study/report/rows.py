"""What each table of a study holds: its rows, and what its columns mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from artent.study.report.view import matrix_of, read

__all__ = ["TABLES", "Table"]

RUN = (
    ("method", "name of the method, or of the control it stands for"),
    ("seed", "seed of the run"),
    ("setting", "setting=value of a run of a sweep, else empty"),
)
MODULE = (("module", "full name of the weight"), ("matrix", "W_Q, W_V, …"), ("layer", "its layer"))
MODEL = (("model", "base, untrained, or the method's name"), ("seed", "seed of the run; empty for base and untrained"))
HEAD = (("layer", "layer of the model"), ("head", "query head"))


class Table(NamedTuple):
    about: str
    columns: tuple
    rows: Callable  # (summary, findings) → dicts by column


def _stage(stage):
    return {"method": stage[0], "seed": stage[1], "setting": stage[2] if len(stage) > 2 else None}


def _module(name):
    matrix, layer = matrix_of(name)
    return {"module": name, "matrix": matrix, "layer": layer}


def _model(model):
    return {"model": model, "seed": None} if isinstance(model, str) else {"model": model[0], "seed": model[1]}


def _profiles(s, _):
    for stage, modules in s.profiles.items():
        for module, steps in sorted(modules.items()):
            for step, p in sorted(steps.items()):
                values = zip(p.bonds, p.log_dims.tolist(), p.entropy.tolist(), p.lower.tolist(), p.upper.tolist())
                for bond, log_dim, S, low, high in values:
                    at = {"step": step, "bond": bond, "cut": bond == p.cut, "log_dim": log_dim}
                    yield {**_stage(stage), **_module(module), **at, "entropy": S, "lower": low, "upper": high}


def _updates(s, _):
    keys = ("cut_entropy", "max_entropy", "valley_depth", "valley_fraction", "effective_rank", "slope")
    for stage, modules in s.profiles.items():
        for module, steps in sorted(modules.items()):
            for step, p in sorted(steps.items()):
                at = {**_stage(stage), **_module(module), "step": step, "rank": p.rank}
                yield {**at, **{key: read(p, key) for key in keys}}


def _nulls(s, _):
    kinds = ("bound", "line", "gaussian", "gaussian_spread", "haar")
    for stage, modules in s.nulls.items():
        for module, null in sorted(modules.items()):
            for i in range(len(null["bound"])):
                values = {kind: null[kind][i] if null.get(kind) else None for kind in kinds}
                yield {**_stage(stage), **_module(module), "bond": i + 1, **values}


def _growth(s, _):
    for treatment, models in {"raw": s.s_ext, **s.s_ext_variants}.items():
        for model, s_ext in models.items():
            for i, T in enumerate(s.lengths):
                for text, S in enumerate(s_ext[i].nanmean((0, 2)).tolist()):
                    yield {**_model(model), "treatment": treatment, "length": T, "text": text, "s_ext": S}


def _growth_nulls(s, _):
    for null, draws in s.growth_null_draws.items():
        for draw, values in enumerate(draws.tolist()):
            for T, S in zip(s.lengths, values):
                yield {"null": null, "draw": draw, "length": T, "s_ext": S}


def _heads(s, _):
    for model, s_ext in s.s_ext.items():
        fit, entropy = s.fits.get(model, {}).get("head_c"), s.entropy[model].nanmean(1)
        mean = s_ext.nanmean(2)  # (lengths, layers, heads)
        for layer in range(mean.shape[1]):
            for head in range(mean.shape[2]):
                at = {**_model(model), "layer": layer, "head": head, "row_entropy": entropy[layer, head].item()}
                at["c"] = fit[layer][head] if fit else None
                for T, S in zip(s.lengths, mean[:, layer, head].tolist()):
                    yield {**at, "length": T, "s_ext": S}


def _fits(s, _):
    for model, fit in s.fits.items():
        low, high = fit.get("interval") or (None, None)
        told = {key: fit.get(key) for key in ("c", "b", "r_squared", "texts")}
        yield {**_model(model), **told, "c_low": low, "c_high": high}


def _attention(s, _):
    for stage, steps in s.attention.items():
        for step, seen in sorted(steps.items()):
            for layer, S in enumerate(seen.s_ext.nanmean((1, 2)).tolist()):
                yield {**_stage(stage), "step": step, "length": seen.length, "layer": layer, "s_ext": S}


def _chain(s, _):
    for model, chain in s.chains.items():
        layers, heads, _ = chain.entropy.shape
        for layer in range(layers):
            for head in range(heads):
                at = {"top": chain.top[layer, head].item(), "s_cut": chain.s_cut[layer, head].item()}
                values = zip(chain.entropy[layer, head].tolist(), chain.spread[layer, head].tolist())
                for bond, (S, spread) in enumerate(values, 1):
                    here = {"layer": layer, "head": head, "bond": bond, "cut": bond == chain.cut}
                    yield {**_model(model), **here, "entropy": S, "spread": spread, **at}


def _losses(s, _):
    for stage, texts in s.losses.items():
        run = {"method": stage, "seed": s.config.model.seed} if isinstance(stage, str) else _stage(stage)
        for text, points in texts.items():
            for step, loss in points:
                yield {**run, "text": text, "step": step, "loss": loss}


def _sweep(s, _):
    keys = ("valley_depth", "cut_entropy", "effective_rank", "slope")
    for run in s.sweeps:
        modules = s.last_profiles(run.stage).values() if run.stage in s.profiles else ()
        seen = s.last_attention(run.stage)
        means = {key: sum(read(p, key) for p in modules) / len(modules) if modules else None for key in keys}
        external = None if seen is None else seen.s_ext.nanmean().item()
        told = {"method": run.of, "seed": run.seed, "vary": run.vary, "value": run.value, "loss": run.loss}
        yield {**told, **means, "s_ext": external, **run.settings}


def _controls(s, _):
    for (control, seed), at in s.controls.items():
        mean, entropy = at.s_ext.nanmean(1), at.entropy.nanmean(1)
        for layer in range(mean.shape[0]):
            for head in range(mean.shape[1]):
                here = {"control": control, "of": at.of, "seed": seed, "layer": layer, "head": head}
                yield {**here, "s_ext": mean[layer, head].item(), "row_entropy": entropy[layer, head].item()}


def _findings(_, findings):
    for found in findings:
        told = {key: getattr(found, key) for key in ("key", "standing", "claim", "detail", "paper")}
        yield {**told, "numbers": json.dumps(found.numbers or {}, default=str)}


S, S_EXT = ("entropy", "S at this bond"), ("s_ext", "S_ext at the row|column cut, mean over what has no column")
STEP, LENGTH = ("step", "step of the optimizer"), ("length", "tokens T of the prefix")

TABLES = {
    "findings": Table(
        "A row a finding, as on the page.",
        (
            ("key", "what it is about"),
            ("standing", "holds, does not hold, not enough data, measured here or fault"),
            ("claim", "the sentence that the numbers chose"),
            ("detail", "the numbers in words"),
            ("paper", "the claim of arXiv 2601.06788 that it judges, if any"),
            ("numbers", "its numbers as JSON"),
        ),
        _findings,
    ),
    "profiles": Table(
        "S(l) of every update at every bond and step measured. A row a bond.",
        (
            *RUN,
            *MODULE,
            STEP,
            ("bond", "bond l, from 1"),
            ("cut", "whether it is the row|column cut"),
            ("log_dim", "ln D, D the dimension left of the bond"),
            S,
            ("lower", "lower bound where it is not exact"),
            ("upper", "upper bound"),
        ),
        _profiles,
    ),
    "updates": Table(
        "What is read off a profile. A row an update and step.",
        (
            *RUN,
            *MODULE,
            STEP,
            ("rank", "nominal rank; empty for full FT"),
            ("cut_entropy", "S at the row|column cut"),
            ("max_entropy", "greatest S over the bonds"),
            ("valley_depth", "max_entropy less cut_entropy"),
            ("valley_fraction", "valley_depth as a share of max_entropy"),
            ("effective_rank", "exp of cut_entropy"),
            ("slope", "dS/d ln D on the rising side"),
        ),
        _updates,
    ),
    "nulls": Table(
        "What each update's last profile is judged by. A row a bond.",
        (
            *RUN,
            *MODULE,
            ("bond", "bond l, from 1"),
            ("bound", "most that the rank (and χ) allows"),
            ("line", "theory: the LoRA line, Page's line without a rank"),
            ("gaussian", "mean S of random Gaussian factors of the same shapes"),
            ("gaussian_spread", "standard deviation of it over draws"),
            ("haar", "mean S with the same singular values and random singular vectors"),
        ),
        _nulls,
    ),
    "growth": Table(
        "S_ext against T, mean over layers and heads. A row a text and length.",
        (*MODEL, ("treatment", "raw, or what was done to A first"), LENGTH, ("text", "which held-out text"), S_EXT),
        _growth,
    ),
    "growth_nulls": Table(
        "S_ext of attention matrices without a trained model behind them. A row a draw and length.",
        (("null", "how they are made"), ("draw", "which draw"), LENGTH, S_EXT),
        _growth_nulls,
    ),
    "fits": Table(
        "S_ext = c ln T + b. A row a model or null.",
        (
            *MODEL,
            ("c", "exponent"),
            ("c_low", "lower end of its interval over texts"),
            ("c_high", "upper end"),
            ("b", "constant"),
            ("r_squared", "share of the variance that the fit explains"),
            ("texts", "how many texts"),
        ),
        _fits,
    ),
    "heads": Table(
        "S_ext of every head, mean over texts. A row a head and length.",
        (*MODEL, *HEAD, LENGTH, S_EXT, ("row_entropy", "mean Shannon entropy of a row"), ("c", "the head's own c")),
        _heads,
    ),
    "attention_steps": Table(
        "S_ext while training and at the end of a sweep's runs, mean over texts and heads. A row a layer and step.",
        (*RUN, STEP, LENGTH, ("layer", "layer of the model"), S_EXT),
        _attention,
    ),
    "chain": Table(
        "All bonds of the attention matrices, means over texts. A row a head and bond.",
        (
            *MODEL,
            *HEAD,
            ("bond", "bond of A, from 1"),
            ("cut", "whether it is the row|column cut"),
            S,
            ("spread", "standard deviation over texts"),
            ("top", "largest Schmidt probability at the cut"),
            ("s_cut", "S at the cut"),
        ),
        _chain,
    ),
    "losses": Table(
        "Held-out loss, nats a token (of the small model: a byte). A row a step.",
        (*RUN, ("text", "old (of the pretraining) or new"), STEP, ("loss", "mean over tokens")),
        _losses,
    ),
    "sweep": Table(
        "A row a run of the sweep, at its end; means over modules.",
        (
            ("method", "whose setting was varied"),
            ("seed", "seed of the run"),
            ("vary", "the setting"),
            ("value", "its value"),
            ("loss", "held-out loss of the new text"),
            ("valley_depth", "nats"),
            ("cut_entropy", "S at the row|column cut"),
            ("effective_rank", "exp S at the cut"),
            ("slope", "dS/d ln D on the rising side"),
            S_EXT,
            *((key, "as the run had it") for key in ("learning_rate", "rank", "alpha", "chi", "init")),
        ),
        _sweep,
    ),
    "controls": Table(
        "S_ext of the controls at the longest T, mean over texts. A row a head; untrained and lora-10x are in heads.",
        (
            ("control", "negated, haar or random"),
            ("of", "the method whose update was changed"),
            ("seed", "seed of that run"),
            *HEAD,
            S_EXT,
            ("row_entropy", "mean Shannon entropy of a row"),
        ),
        _controls,
    ),
}
