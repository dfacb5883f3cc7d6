"""Findings about the bonds and the spectrum of single attention matrices: which form, an outlier beside a bulk."""

from __future__ import annotations

from artent.study.analysis import laws, residuals
from artent.study.analysis.statistics import interval
from artent.study.findings.attention import AREA_LAW
from artent.study.findings.finding import FAILS, HOLDS, OPEN, Finding, few_seeds, listed

__all__ = ["external_chain", "theory_attention"]

FOLLOWS = 0.2  # nats: S_ext nearer than this to a formula is described by it
FORMS = {"calabrese-cardy": "Calabrese and Cardy's form", "linear": "a volume law", "flat": "no growth"}


def external_chain(s):
    """The law's other reading: the bonds of one A as a chain."""
    paper = f"{AREA_LAW}, read over the bonds of one attention matrix: Calabrese and Cardy's form."
    forms = {m: found for m in ("base", *s.runs) if (found := laws.chain_forms(s, m)) is not None}
    if not forms:
        if s.config.measure.chain_texts and not s.chains:
            return None  # records from before there were chains
        detail = "No attention matrix was profiled at every bond: set measure.chain_texts."
        return Finding("external-chain", "The bonds of A were not measured", detail, OPEN, paper)
    base = next(name for name in ("base", *forms) if name in forms)
    judged, whose = forms[base], "the base model" if base == "base" else s.labels[base[0]]
    shares = ", ".join(f"{100 * share:.0f} % {FORMS[form]}" for form, share in judged.shares.items())
    texts = s.config.measure.chain_texts
    detail = f"Best form of {judged.heads} heads of {whose} by Akaike's criterion, of the mean over {texts} "
    detail += f"{'text' if texts == 1 else 'texts'}: {shares}. Mean Akaike weight of the first, with its interval over "
    detail += f"heads: {judged.cardy}; its c {judged.c:.2f}."
    # of the base there is one run, whose heads are all there is; of a method there are seeds
    weights, told = {whose: judged.cardy}, []
    for m in s.methods:
        if seeds := [forms[(m.name, seed)].cardy.value for seed in s.seeds(m.name) if (m.name, seed) in forms]:
            weights[m.label] = interval(seeds, s.config.judge.confidence)
            told.append(f"{m.label} {weights[m.label]}")
    if told:
        detail += f" Fine-tuned, with intervals over seeds: {', '.join(told)}."
    numbers = {f"share of heads, {form}": share for form, share in judged.shares.items()}
    numbers |= {f"mean Akaike weight, {form}": weight for form, weight in judged.weights.items()}
    numbers |= {"mean Akaike weight, calabrese-cardy": judged.cardy.numbers, "mean c": judged.c}
    numbers |= {f"{label}: mean Akaike weight, calabrese-cardy": x.numbers for label, x in weights.items()}
    best = max(judged.shares, key=judged.shares.get)
    follows = [label for label, x in weights.items() if x.low > 0.5]
    differs = [label for label, x in weights.items() if x.high < 0.5]
    if len(follows) == len(weights):
        claim, standing = "Over its bonds, the entropy of most heads has Calabrese and Cardy's form", HOLDS
    elif len(differs) == len(weights):
        claim, standing = f"Over the bonds of A most heads of {whose} follow {FORMS[best]}", FAILS
        claim += ", not Calabrese and Cardy's form"
        if best == "calabrese-cardy" or judged.shares[best] <= 0.5:
            claim = "Over the bonds of A no form fits most heads"
    elif follows and differs:
        claim, standing = "Which form the bonds of A follow depends on the model", OPEN
        detail += f" Calabrese and Cardy's in {listed(follows)}, not in {listed(differs)}."
    else:
        claim, standing = "The heads do not settle which form the bonds of A follow", OPEN
        if whose in differs and best != "calabrese-cardy" and judged.shares[best] > 0.5:
            claim = f"Over the bonds of A most heads of {whose} follow {FORMS[best]}; of all models it is not settled"
    if few := few_seeds(s, s.methods):
        detail, standing = f"{detail} {few}", OPEN
    return Finding("external-chain", claim, detail, standing, paper, numbers)


def theory_attention(s):
    """Outlier and bulk beside the measured S_ext; c from logits of the measured spread."""
    paper = "Random matrix theory accounts for the entropy of attention: an outlier beside a bulk."
    model = "base" if "base" in s.chains else next(iter(s.chains), None)
    mixture = residuals.attention_mixture(s, model) if model is not None else None
    if mixture is None:
        return None
    whose = "the base model" if model == "base" else s.labels.get(model[0], model[0])
    c, gaussian = s.fits.get("base", {}).get("c"), s.fits.get("Gaussian logits", {}).get("c")
    detail = (
        f"S at the cut of {mixture.line.n} heads of {whose} beside h(p₁) + (1 − p₁)(ln T_eff − ½), rms in nats over "
    )
    detail += "heads: "
    detail += (
        f"{mixture.line} with T_eff = T, {mixture.fitted} with the one T_eff that fits best, {mixture.share:.2f} T, "
    )
    detail += f"which explains {100 * mixture.explained:.0f} % of the variance between heads."
    numbers = {
        "rms, T_eff = T": mixture.line.numbers,
        "rms, T_eff fitted": mixture.fitted.numbers,
        "T_eff / T": mixture.share,
        "variance between heads explained": mixture.explained,
        "mean p₁": mixture.top,
    }
    if c is not None and gaussian is not None:
        detail += f" Independent Gaussian logits of the measured spread have c = {gaussian:.2f}, the model {c:.2f}."
        numbers |= {"c measured": c, "c of Gaussian logits": gaussian}
    detail += f" S counts as described within {FOLLOWS} nats."
    if mixture.line.high <= FOLLOWS:
        claim, standing = f"An outlier beside a random bulk describes the entropy of {whose}'s attention", HOLDS
    elif mixture.fitted.low > FOLLOWS:
        claim, standing = f"An outlier beside a random bulk does not describe the entropy of {whose}'s attention", FAILS
    elif mixture.fitted.high <= FOLLOWS:
        claim = f"An outlier beside a bulk of {mixture.share:.2f} T states, not T, describes {whose}'s attention"
        standing = FAILS
    else:
        claim, standing = "The heads do not settle whether an outlier beside a bulk describes attention", OPEN
    if few := few_seeds(s, s.methods):
        detail, standing = f"{detail} {few}", OPEN
    return Finding("theory-attention", claim, detail, standing, paper, numbers)
