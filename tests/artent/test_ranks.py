"""``suggest_ranks``: against truncated SVDs in float64, against brute force, and with PEFT itself."""

import itertools
import json

import numpy as np
import peft
import pytest
import torch
from artent import LoRAUpdate, entanglement_profile, profile_model, weight_updates
from artent.ranks import suggest_ranks
from artent.records import RecordWriter
from transformers import LlamaConfig, LlamaForCausalLM

Q0 = "model.layers.0.self_attn.q_proj"


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectrum(m, n, sigma, seed=0):
    """An (m, n) matrix of these singular values, between random vectors."""
    U, V = (torch.linalg.qr(random(d, len(sigma), seed=seed + i)).Q for i, d in enumerate((m, n)))
    return U @ torch.diag(torch.tensor(sigma, dtype=torch.float64)) @ V.T


def singular_values(update):
    dense = update.dense() if isinstance(update, LoRAUpdate) else update
    return np.linalg.svd(dense.double().numpy(), compute_uv=False), dense.double().numpy()


UPDATES = {
    "decaying": with_spectrum(24, 40, [0.8**i for i in range(24)]),
    "flat": with_spectrum(12, 12, [1.0] * 12),
    "exactly low rank": with_spectrum(32, 16, [3.0, 2.0, 1.0]),
    "one": random(18, 1) @ random(1, 6, seed=1),
    "a row": random(1, 16),
    "single precision": random(30, 20).float(),
    "factors": LoRAUpdate(random(24, 6), random(6, 36, seed=1), 0.3),
    "factors of which one is void": LoRAUpdate(random(20, 4) * torch.tensor([1.0, 1, 1, 0]), random(4, 12), 2.0),
}


@pytest.mark.parametrize("case", UPDATES)
@pytest.mark.parametrize("by", ["mass", "error", "entropy"])
def test_the_rank_is_the_smallest_whose_truncation_keeps_the_promise(case, by):
    update = UPDATES[case]
    sigma, W = singular_values(update)
    U, s, Vh = np.linalg.svd(W, full_matrices=False)
    p = sigma**2 / (sigma**2).sum()
    profile = entanglement_profile(update)
    targets = {"mass": (0.3, 0.5, 0.9, 0.99, 1), "error": (0.05, 0.3, 0.7), "entropy": (0.5, 1, 1.5)}
    for target in targets[by]:
        suggestion = suggest_ranks({"m": profile}, by=by, target=target)
        k = suggestion.ranks["m"]
        error = [np.linalg.norm(W - (U[:, :j] * s[:j]) @ Vh[:j]) / np.linalg.norm(W) for j in (k - 1, k)]
        rounding = 1e-6 if profile.shape == (30, 20) else 1e-12
        assert suggestion.kept["m"] == pytest.approx(p[:k].sum(), abs=rounding)
        assert 1 - suggestion.kept["m"] == pytest.approx(error[1] ** 2, abs=rounding)
        if by == "mass":
            assert p[:k].sum() > target - rounding
            assert k == 1 or p[: k - 1].sum() < target
        elif by == "error":
            assert error[1] <= target + rounding
            assert k == 1 or error[0] > target
        else:
            effective = target * np.exp(-(p[p > 1e-30] * np.log(p[p > 1e-30])).sum())
            assert k == max(1, min(np.linalg.matrix_rank(W), int(np.ceil(effective - 1e-4))))


def test_defaults_agree_with_the_profile():
    profile = entanglement_profile(UPDATES["decaying"])
    k = suggest_ranks({"m": profile}).ranks["m"]
    assert profile.mass_kept(k) >= 0.9 > profile.mass_kept(k - 1)


def test_a_randomized_profile_gives_a_rank_that_is_certain_to_suffice_or_says_what_to_do():
    W = with_spectrum(96, 64, [0.9**i for i in range(64)])
    sigma, _ = singular_values(W)
    p = sigma**2 / (sigma**2).sum()
    sketch = entanglement_profile(W, method="randomized", rank=16)
    exact = {"m": entanglement_profile(W)}
    assert sketch.bond_methods[sketch.cut - 1] == "randomized"
    for by, target in (("mass", 0.5), ("mass", 0.9), ("error", 0.5), ("entropy", 1.0)):
        found = suggest_ranks({"m": sketch}, by=by, target=target)
        smallest = suggest_ranks(exact, by=by, target=target).ranks["m"]
        assert found.ranks["m"] >= smallest
        assert found.kept["m"] <= p[: found.ranks["m"]].sum() + 1e-12
        assert found.bounded == ("m",)
        if by != "entropy":
            assert found.ranks["m"] <= smallest + 2
    for by, target in (("mass", 0.999), ("error", 0.01)):
        with pytest.raises(ValueError, match=r"m: .*found 16 .*rank .*method='exact'"):
            suggest_ranks({"m": sketch}, by=by, target=target)
    few, many = 160 * 6, 160 * 40
    assert suggest_ranks({"m": sketch}, parameters=few).ranks == suggest_ranks(exact, parameters=few).ranks == {"m": 6}
    with pytest.raises(ValueError, match=r"m: the budget reaches beyond the 16 .*maximum=16"):
        suggest_ranks({"m": sketch}, parameters=many)
    assert suggest_ranks({"m": sketch}, parameters=many, maximum=16).ranks == {"m": 16}


SHAPES = {
    "equal": [(8, 12), (8, 12), (12, 8)],
    "mixed": [(6, 6), (5, 24), (40, 7)],
    "small": [(3, 9), (30, 30), (4, 4)],
}
LIMITS = [
    {},
    {"multiple_of": 2},
    {"minimum": 2, "maximum": 5},
    {"multiple_of": 3, "maximum": 7},
    {"importance": {"0": 1.0, "1": 30.0, "2": 0.1}},
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("case", SHAPES)
def test_a_budget_is_shared_out_as_brute_force_would(case, limits):
    shapes = SHAPES[case]
    decays = (0.5, 0.8, 0.95)
    W = {str(i): with_spectrum(*s, [decays[i] ** j for j in range(min(s))], seed=i) for i, s in enumerate(shapes)}
    profiles = {name: entanglement_profile(w) for name, w in W.items()}
    weight = {name: limits.get("importance", {}).get(name, 1.0) for name in W}
    left, allowed = {}, {}
    for name, w in W.items():
        sigma, side = singular_values(w)[0], min(w.shape)
        p = sigma**2 / (sigma**2).sum()
        left[name] = [weight[name] * p[k:].sum() for k in range(side + 1)]
        q, least = limits.get("multiple_of", 1), min(limits.get("minimum", 1), side)
        ranks = [k for k in range(1, side + 1) if (k % q == 0 or k == side) and k >= least]
        allowed[name] = [k for k in ranks if k <= limits.get("maximum", 99)]
    cost = {name: sum(w.shape) for name, w in W.items()}
    every = list(itertools.product(*allowed.values()))
    prices = [sum(k * cost[name] for k, name in zip(ranks, W)) for ranks in every]
    losses = [sum(left[name][k] for k, name in zip(ranks, W)) for ranks in every]
    one_price = len(set(cost.values())) == 1 and all(len(set(np.diff(a))) < 2 for a in allowed.values())
    for budget in sorted({*prices, *(price + 3 for price in prices)})[::3]:
        found = suggest_ranks(profiles, parameters=int(budget), **limits)
        assert found.parameters == sum(k * cost[name] for name, k in found.ranks.items()) <= budget
        assert all(k in allowed[name] for name, k in found.ranks.items())
        loss = sum(left[name][k] for name, k in found.ranks.items())
        best = min(lost for lost, price in zip(losses, prices) if price <= budget)
        if one_price:
            assert loss == pytest.approx(best, abs=1e-12)
        assert best - 1e-12 <= loss <= best + first_refused(left, allowed, cost, budget) + 1e-12


def first_refused(left, allowed, cost, budget):
    """The gain of the first step, by gain for a parameter, that a budget can't pay whole; zero if there is none."""
    budget -= sum(cost[name] * ranks[0] for name, ranks in allowed.items())
    steps = [
        (left[name][a] - left[name][b], cost[name] * (b - a))
        for name in left
        for a, b in itertools.pairwise(allowed[name])
    ]
    for gain, price in sorted(steps, key=lambda step: -step[0] / step[1]):
        if price > budget:
            return gain
        budget -= price
    return 0.0


def test_a_share_is_of_what_there_is_now():
    factored = entanglement_profile(UPDATES["factors"])  # rank 6 of 24 × 36
    dense = entanglement_profile(UPDATES["decaying"])  # 24 × 40
    found = suggest_ranks({"a": factored, "b": dense}, parameters=0.5)
    assert found.parameters_before == 6 * (24 + 36) + 24 * 40
    assert found.parameters_before / 2 - 64 < found.parameters <= found.parameters_before / 2
    assert found.saved == found.parameters_before - found.parameters


def small():
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2))


def trained(config):
    model = peft.get_peft_model(small(), config)
    with torch.no_grad():
        for i, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter += 0.3 * random(*parameter.shape, seed=i).to(parameter.dtype)
    return model


def lora(**options):
    return peft.LoraConfig(**{"r": 6, "lora_alpha": 9, "target_modules": ["q_proj", "v_proj"]} | options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank_pattern": {"v_proj": 3}, "alpha_pattern": {"layers.1.self_attn.q_proj": 12}},
        {"use_rslora": True, "alpha_pattern": {"q_proj": 5}},
        {"use_dora": True},
    ],
    ids=str,
)
def test_the_scaling_of_an_adapter_is_kept(options, tmp_path):
    model = trained(lora(**options))
    model.save_pretrained(tmp_path)
    live = suggest_ranks(model, parameters=600)
    again = peft.get_peft_model(small(), live.lora_config())
    assert len(set(live.ranks.values())) > 1
    for name in live.ranks:
        before, after = (m.get_base_model().get_submodule(name) for m in (model, again))
        if options.get("use_rslora"):  # α stays
            grown = (before.r["default"] / after.r["default"]) ** 0.5
            assert after.scaling["default"] == pytest.approx(before.scaling["default"] * grown)
        else:
            assert after.scaling["default"] == pytest.approx(before.scaling["default"])
    if not options.get("use_dora"):
        folder = suggest_ranks(tmp_path, parameters=600)
        assert (folder.ranks, folder.config()) == (live.ranks, live.config())
    fixed = suggest_ranks(model, parameters=600, scaling=2)
    assert fixed.alphas == {name: 2 * rank for name, rank in live.ranks.items()}
    assert "use_rslora" not in fixed.config()


def test_all_sources_of_the_same_updates_agree(tmp_path):
    model = trained(lora())
    with torch.no_grad():
        model.get_base_model().get_submodule(Q0).lora_B["default"].weight.zero_()
    adapter = suggest_ranks(model, target=0.8)
    profiles = profile_model(model)
    merged = suggest_ranks(trained(lora()).merge_and_unload(), small(), targets=["q_proj", "v_proj"], target=0.8)
    records = tmp_path / "run" / "results.jsonl"
    with RecordWriter(records) as writer:
        head = {"kind": "profile", "method": "LoRA", "seed": 0}
        for step, of in ((0, {n: entanglement_profile(random(6, 6)) for n in profiles}), (10, profiles)):
            writer.write(*({**head, "step": step, "module": n, **p.to_dict()} for n, p in of.items()))
        writer.write({"kind": "unchanged", "module": Q0}, {"kind": "attention", "step": 10})
    assert adapter.unchanged == (Q0,)
    assert list(adapter.ranks) == list(profiles)
    assert {name: rank for name, rank in merged.ranks.items() if name != Q0} == adapter.ranks
    assert set(merged.nominal.values()) == {None}
    for source in (profiles, records, str(records.parent)):
        found = suggest_ranks(source, target=0.8)
        assert (found.ranks, found.kept, found.nominal) == (adapter.ranks, adapter.kept, adapter.nominal)
        assert found.unchanged == (() if source is profiles else (Q0,))
        assert found.alphas == found.ranks  # nothing there tells α: α/r is 1
        only = suggest_ranks(source, targets=["q_proj"], target=0.8)
        assert only.target_modules == [name for name in profiles if name.endswith("q_proj")]
    with RecordWriter(records) as writer:
        writer.write(*({**head, "seed": 1, "step": 10, "module": n, **p.to_dict()} for n, p in profiles.items()))
    with pytest.raises(ValueError, match=r"several runs \(seed: 0, 1\)"):
        suggest_ranks(records)


def test_what_is_told():
    profiles = {"a.q": entanglement_profile(UPDATES["decaying"]), "b.q": entanglement_profile(UPDATES["factors"])}
    found = suggest_ranks(profiles, target=0.99, maximum=4)
    assert found.ranks == {"a.q": 4, "b.q": 4}
    assert found.missed == ("a.q", "b.q")
    told = json.loads(json.dumps(found.to_dict()))
    assert told["modules"]["b.q"] == {"rank": 4, "before": 6, "shape": [24, 36], "kept": found.kept["b.q"]}
    assert told["parameters"] == 4 * (24 + 40 + 24 + 36)
    assert told["saved"] == told["parameters_before"] - told["parameters"] == found.saved
    config = peft.LoraConfig(**{key: told[key] for key in found.config()})
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 4, {"a.q", "b.q"})
    assert repr(found) == (
        "RankSuggestion(2 modules, 2 of rank 4: 496 parameters for 1,320, at least "
        f"{min(found.kept.values()):.3f} of every ‖ΔW‖² kept)"
    )
    multiples = suggest_ranks(profiles, by="error", target=np.float64(0.01), multiple_of=np.int64(16))
    assert multiples.ranks == {"a.q": 24, "b.q": 16}  # of 24 rows no more than 24
    json.dumps(multiples.to_dict())
    steps = []
    model = trained(lora())
    suggest_ranks(model, progress=lambda done, modules: steps.append((done, modules)))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert suggest_ranks(dict(weight_updates(model)) and profile_model(model)).ranks == suggest_ranks(model).ranks


P = {"m": entanglement_profile(UPDATES["decaying"])}
BAD = {
    "an unknown criterion": (P, {"by": "rank"}, ValueError, "by='rank'.*mass, error, entropy"),
    "all the error": (P, {"by": "error", "target": 1}, ValueError, "between 0 and 1"),
    "more than all": (P, {"target": 1.5}, ValueError, "between 0 and 1"),
    "no target": (P, {"target": float("nan")}, ValueError, "target: expected a finite"),
    "a target in words": (P, {"target": "most"}, TypeError, "target: expected"),
    "target and budget": (P, {"target": 0.9, "parameters": 100}, ValueError, "parameters: .*one or the other"),
    "too small a budget": (P, {"parameters": 100, "minimum": 2}, ValueError, "100 are fewer than the 128"),
    "too great a share": (P, {"parameters": 1.5}, ValueError, "parameters: a float is a share"),
    "a budget that is none": (P, {"parameters": True}, TypeError, "parameters must be"),
    "limits that cross": (P, {"minimum": 9, "maximum": 8}, ValueError, "maximum: 8 leaves no rank"),
    "a multiple above the maximum": (P, {"multiple_of": 8, "maximum": 7}, ValueError, "maximum: 7 leaves no rank"),
    "rank zero": (P, {"minimum": 0}, ValueError, "minimum: expected 1 or more"),
    "half a rank": (P, {"maximum": 2.5}, TypeError, "maximum must be an integer"),
    "importance without a budget": (P, {"importance": {"m": 1}}, ValueError, "importance: .*parameters"),
    "importance of others": (P, {"importance": {"n": 1}, "parameters": 99}, ValueError, r"missing for \['m'\]"),
    "a negative scaling": (P, {"scaling": -1}, ValueError, "scaling: expected"),
    "no profiles": ({}, {}, ValueError, "none of its 0 modules"),
    "a profile too few": (P | {"n": None}, {}, TypeError, r"source\['n'\]: expected an EntanglementProfile"),
    "a target too many": (P, {"targets": ["k"]}, ValueError, r"targets \['k'\] match none"),
    "options for profiles": (P, {"method": "exact", "base": P}, ValueError, "base, method: of no use"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(case):
    source, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        suggest_ranks(source, **options)


def test_an_adapter_before_its_first_step_has_no_ranks():
    with pytest.raises(ValueError, match=r"none of its 4 modules has an update.*B starts at zero"):
        suggest_ranks(peft.get_peft_model(small(), lora()))


def test_an_estimated_entropy_gives_a_rank_three_standard_errors_above_at_most():
    W = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    exact, hybrid = entanglement_profile(W), entanglement_profile(W, method="hybrid", max_error=0.02)
    assert hybrid.bond_methods[hybrid.cut - 1] == "hybrid"
    rank = suggest_ranks({"q": hybrid}, by="entropy").ranks["q"]
    assert float(exact.effective_rank) <= rank <= 1.13 * float(exact.effective_rank)  # 6 errors of 0.02
