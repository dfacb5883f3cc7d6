"""The measurements of a study that the training callback does not make: growth of S_ext with T, fits, and nulls."""

from __future__ import annotations

from dataclasses import asdict

import torch
from tqdm import tqdm

import artent
from artent import theory
from artent.attention import spectral_entropy
from artent.study.nulls import gaussian_attention, matching_spread, window_attention

__all__ = ["fit", "growth", "growth_nulls", "profile_nulls"]


def growth(model, texts, config, name):
    """S_ext of every head of ``model`` on ``texts`` at ``config.lengths``, and its fit over all heads: two records."""
    measured = artent.attention_entanglement(model, texts, lengths=config.lengths)
    record = {"kind": "growth", "model": name, **measured.to_dict()}
    per_text = measured.s_ext.mean((1, 3)).T  # (texts, lengths)
    return [record, fit(name, config, per_text, measured.s_ext)]


def growth_nulls(measured, config):
    """Uniform, windowed and Gaussian attention at the same lengths: a growth-null and a fit record each.

    ``measured`` is the base model's growth record: the Gaussian null takes, head by head, the spread of logits
    that gives the head's mean row entropy at the full context. Its draws stand for texts.
    """
    generator = torch.Generator().manual_seed(config.base_seed)
    noise = torch.randn(config.null_draws, config.context, config.context, generator=generator, dtype=torch.float64)
    row_entropy = torch.tensor(measured["entropy"]).mean(1).flatten()  # (layers · heads,), the mean over texts
    spread = torch.tensor([matching_spread(noise[0], value) for value in row_entropy], dtype=torch.float64)
    spread = spread[:, None, None]
    window = max(2, config.context // 16)
    rules = {
        "uniform causal mask": lambda T: torch.tensor([theory.causal_uniform(T)]),
        f"local window of {window}": lambda T: spectral_entropy(window_attention(T, window)[None]),
        "Gaussian logits": lambda T: spectral_entropy(gaussian_attention(noise[:, None, :T, :T], spread)).mean(1),
    }
    records = []
    for name, rule in tqdm(rules.items(), desc="attention nulls", unit="null", leave=False):
        values = torch.stack([rule(T) for T in config.lengths], 1)  # (draws, lengths)
        records.append({"kind": "growth-null", "model": name, "lengths": config.lengths, "s_ext": values})
        records.append(fit(name, config, values))
    return records


def fit(name, config, per_text, per_head=None):
    """The fit record of S_ext = c ln T + b.

    ``per_text`` (texts, lengths) is what c and its interval come from; with ``per_head`` (lengths, layers, texts,
    heads) the record also holds every head's own c, ``head_c`` (layers, heads).
    """
    law = theory.fit_growth(config.lengths, per_text, seed=config.base_seed)
    record = {"kind": "fit", "model": name, **asdict(law), "verdict": law.verdict}
    if per_head is not None:
        layers = per_head.permute(1, 3, 2, 0)  # (layers, heads, texts, lengths)
        record["head_c"] = [[theory.fit_growth(config.lengths, head).c for head in heads] for heads in layers]
    return record


@torch.no_grad()
def profile_nulls(model, base, config):
    """Beside every module's last profile: bound, theory line, Gaussian and Haar nulls, in nats a bond. Records.

    The Gaussian null of an MPS is of Gaussian cores; its theory line is LoRA's, Gaussian factors without a chain.
    """
    updates = dict(artent.weight_updates(model, base, targets=config.targets))
    profiles = dict(zip(updates, artent.entanglement_profile(list(updates.values()))))
    options = {"draws": config.null_draws, "seed": config.base_seed}
    gaussian, records = {}, []
    for name, update in tqdm(updates.items(), desc="nulls", unit="module", leave=False):
        profile = profiles[name]
        chain = isinstance(update, artent.MPSUpdate)
        alike = (profile.shape, profile.rank, update.chains if chain else None)
        if alike not in gaussian:  # it knows only the shapes
            gaussian[alike] = theory.gaussian_null(update, **options)
        haar = theory.haar_null(update, **options)
        inner = theory.core_ranks(update) if chain else None
        dense = profile.rank is None
        line = theory.page_line(profile.dims) if dense else theory.lora_line(profile.dims, profile.cut, profile.rank)
        records.append(
            {
                "kind": "profile-null",
                "module": name,
                "bound": theory.rank_bound(profile.dims, profile.cut, profile.rank, inner),
                "line": line,
                "gaussian": gaussian[alike].mean,
                "gaussian_spread": gaussian[alike].std,
                "haar": haar.mean,
            }
        )
    return records
