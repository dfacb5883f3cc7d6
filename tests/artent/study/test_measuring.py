"""Measurements of a study against eager attention in float64, singular values and plain least squares."""

import copy
import importlib
import math
from types import SimpleNamespace

import artent
import artent.study.measuring.nulls as nulls
import artent.study.measuring.update_nulls as update_nulls
import numpy as np
import peft
import pytest
import safetensors
import torch
import transformers
from artent import theory
from artent.study.measuring import (
    TREATMENTS,
    chain,
    growth,
    growth_nulls,
    profile_nulls,
    samples,
    samples_record,
    write_samples,
)
from artent.study.measuring.rows import positions
from safetensors.torch import load_file
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from tuned_models import llama, lora, train

T = 24
SOFTMAX = 1e-6  # eager takes its softmax in float32, whatever the model
growths, chains = (importlib.import_module(f"artent.study.measuring.{name}") for name in ("growth", "chain"))
IDS = torch.randint(1, 48, (3, T), generator=torch.Generator().manual_seed(1))
MEASURE = SimpleNamespace(
    lengths=(6, 12, T), targets=("q_proj", "v_proj"), null_draws=2, rows=4, chain_texts=2
)  # of MeasureConfig what is read here


def svd_entropy(A):
    p = torch.linalg.svdvals(A.double()).square()
    return torch.special.entr(p / p.sum(-1, keepdim=True)).sum(-1)


def slope(S):
    return np.polyfit(np.log(MEASURE.lengths), S, 1)[0]


@pytest.fixture(scope="module")
def model():
    return llama(initializer_range=0.25)  # logits of order one


@pytest.fixture(scope="module")
def eager(model):
    """(layers, texts, heads, T, T) in float64."""
    return attentions(model)


def attentions(model):
    model = copy.deepcopy(model).double()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return torch.stack(model(IDS, output_attentions=True).attentions)


def prefixes(A, treatment):
    """S_ext of A's leading blocks (lengths, layers, texts, heads), each treatment as it is defined."""
    found = []
    for length in MEASURE.lengths:
        block = A[..., :length, :length]
        if treatment == "sink_removed":
            block = block[..., 1:, 1:] / block[..., 1:, 1:].sum(-1, keepdim=True)
        if treatment == "row_normalised":
            block = block / block.norm(dim=-1, keepdim=True)
        found.append(svd_entropy(block))
    return torch.stack(found)


@pytest.mark.parametrize("treatment", ["raw", *TREATMENTS])
def test_growth_and_its_fits(model, eager, monkeypatch, treatment):
    monkeypatch.setattr(growths, "_TOKENS", 2 * T)  # three texts in two batches
    longer = torch.cat([IDS, IDS], 1)
    record, fit = growth(model, longer, MEASURE, "base", treatment=treatment)
    S = prefixes(eager, treatment)
    torch.testing.assert_close(torch.tensor(record["s_ext"], dtype=torch.float64), S, atol=SOFTMAX, rtol=0)
    torch.testing.assert_close(
        torch.tensor(record["entropy"], dtype=torch.float64),
        torch.special.entr(eager).sum(-1).mean(-1),
        atol=SOFTMAX,
        rtol=0,
    )
    assert (record["model"], record["treatment"], record["tokens"]) == ("base", treatment, [T] * 3)
    assert "variant" not in record  # which in a record would be a run of a sweep
    assert fit["c"] == pytest.approx(slope(S.mean((1, 2, 3))), abs=SOFTMAX)
    for layer in range(2):
        assert fit["layer_c"][layer] == pytest.approx(slope(S[:, layer].mean((1, 2))))
        assert fit["head_c"][layer] == pytest.approx([slope(S[:, layer, :, h].mean(1)) for h in range(4)])
        # A resampling of three texts is of one text alone in 1 of 27 cases, more than the 2.5 % at each end.
        ends = [slope(S[:, layer, text].mean(1)) for text in range(3)]
        assert fit["layer_interval"][layer] == pytest.approx((min(ends), max(ends)), abs=SOFTMAX)
    assert np.shape(fit["head_interval"]) == (2, 4, 2)
    assert (fit["model"] == "base") == (treatment == "raw")  # or it would pass for the fit of A itself


def test_texts_shorter_than_the_longest_length_are_refused(model):
    with pytest.raises(ValueError, match=r"T ≥ 24.*data\.context"):
        growth(model, IDS[:, :20], MEASURE, "base")


def test_nulls_of_growth_are_matrices_by_rule(monkeypatch):
    entropy = torch.linspace(0.5, 2.0, 10, dtype=torch.float64).reshape(2, 1, 5).expand(2, 3, 5)  # layers, texts, heads
    monkeypatch.setattr(nulls, "_HEADS", (3, 3))
    records = growth_nulls({"entropy": entropy.tolist()}, MEASURE)
    assert [r["kind"] for r in records] == ["growth-null", "fit"] * 3
    uniform, window, gaussian = records[::2]
    assert uniform["s_ext"].tolist()[0] == pytest.approx([theory.causal_uniform(length) for length in MEASURE.lengths])
    for i, length in enumerate(MEASURE.lengths):
        seen = torch.tensor([[0 <= q - k < 2 for k in range(length)] for q in range(length)]).double()
        assert window["s_ext"][0, i].item() == pytest.approx(svd_entropy(seen / seen.sum(-1, keepdim=True)).item())
    assert gaussian["heads"] == 3
    noise = torch.randn(T, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = (0.5, 7 / 6, 2.0)  # the first, fifth and last of ten
    heads = torch.stack([nulls.gaussian_attention(noise, nulls.matching_spread(noise, value)) for value in values])
    assert torch.special.entr(heads).sum(-1).mean(-1).tolist() == pytest.approx(values, abs=1e-6)
    assert torch.allclose(heads.sum(-1), torch.ones(T, dtype=torch.float64))
    assert not heads.triu(1).any()
    for i, length in enumerate(MEASURE.lengths):
        S = svd_entropy(heads[:, :length, :length]).mean()
        assert gaussian["s_ext"][0, i].item() == pytest.approx(S.item(), abs=1e-6)
    assert gaussian["s_ext"].shape == (2, 3)


@pytest.mark.parametrize(("size", "spread", "error"), [(64, 0.3, 1e-6), (64, 4.0, 1e-6), (600, 2.0, 0.02)])
def test_matching_spread_inverts_the_row_entropy(size, spread, error):
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    entropy = torch.special.entr(nulls.gaussian_attention(noise, spread)).sum(-1).mean()
    assert nulls.matching_spread(noise, entropy) == pytest.approx(spread, rel=error)


FAMILIES = {
    "llama": ("Llama", {}),
    "window": ("Mistral", {"sliding_window": 6}),
    "softcap": ("Gemma2", {"head_dim": 8, "sliding_window": 6, "attn_logit_softcapping": 1.0}),
}


def tiny(family, dtype):
    name, extra = FAMILIES[family]
    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = getattr(transformers, f"{name}Config")(**sizes, **heads, **extra, initializer_range=0.25)
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config).to(dtype)


@pytest.mark.parametrize(
    ("family", "dtype", "adapted"),
    [
        ("llama", torch.float32, False),
        ("llama", torch.bfloat16, True),
        ("window", torch.float32, True),
        ("softcap", torch.float32, False),
    ],
)
def test_sampled_rows_and_outputs(family, dtype, adapted):
    model = tiny(family, dtype)
    if adapted:
        model = train(peft.get_peft_model(model, lora()))
    inner = model.get_base_model() if adapted else model
    attention = [layer.self_attn for layer in inner.model.layers]
    inner.train()
    before = inner.config._attn_implementation
    found = samples(model, IDS, 4)
    assert inner.training
    assert inner.config._attn_implementation == before
    assert "artent" not in ALL_ATTENTION_FUNCTIONS._local_mapping

    at = [12, 16, 19, 23]
    inner.eval()
    inputs = []
    hooks = [a.o_proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for a in attention]
    for text in IDS:
        inner.set_attn_implementation("artent" if family == "softcap" else "sdpa")  # sdpa knows no soft cap
        with torch.no_grad():
            model(input_ids=text[None])
    for hook in hooks:
        hook.remove()
    want = torch.stack([torch.cat(inputs[layer::2])[:, at].float() for layer in range(2)])
    assert found["outputs"].shape == (2, 3, 4, 32)
    torch.testing.assert_close(found["outputs"], want, rtol=8 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)

    exact = attentions(model)[..., at, :]
    assert found["rows"].dtype == torch.float16
    assert found["rows"].shape == exact.shape == (2, 3, 4, 4, T)
    inner.set_attn_implementation("eager")
    with torch.no_grad():  # what the model's own dtype does to its queries, keys and probabilities
        own = torch.stack(model(IDS, output_attentions=True).attentions)[..., at, :].double()
    error, allowed = (found["rows"].double() - exact).abs().max(), (own - exact).abs().max()
    assert error <= allowed + 2**-11
    assert (found["rows"] == 0).equal(exact < 2**-25)


@pytest.mark.parametrize(
    ("tokens", "rows", "at"),
    [(8, 1, [7]), (8, 2, [4, 7]), (8, 4, [4, 5, 6, 7]), (9, 3, [4, 6, 8]), (9, 5, [4, 5, 6, 7, 8])],
)
def test_positions_are_in_the_second_half(tokens, rows, at):
    assert positions(tokens, rows).tolist() == at
    with pytest.raises(ValueError, match=rf"expected 1 … {tokens - tokens // 2}"):
        positions(tokens, tokens - tokens // 2 + 1)


def test_a_file_of_samples_is_whole_or_absent(model, tmp_path, monkeypatch):
    record = samples_record(model, IDS, MEASURE, "lora-r4", tmp_path, "lora-r4-0")
    assert record == {"kind": "samples", "model": "lora-r4", "file": "samples/lora-r4-0.safetensors"}
    path, want = tmp_path / record["file"], samples(model, IDS, 4)
    assert all(torch.equal(tensor, want[name]) for name, tensor in load_file(path).items())
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"positions": "12 16 19 23"}

    def full(tensors, part, told):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    for broken in (path, path.with_name("other.safetensors")):
        with pytest.raises(OSError, match="No space"):
            write_samples(broken, want)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert load_file(path).keys() == want.keys()


def bond_entropies(A, dims):
    """Singular values of every unfolding, the definition."""
    left = [math.prod(dims[:l]) for l in range(1, len(dims))]
    return torch.stack([svd_entropy(A.reshape(*A.shape[:-2], D, -1)) for D in left], -1)


@pytest.mark.parametrize("exact", [True, False])
def test_attention_as_a_chain(model, eager, monkeypatch, exact):
    if not exact:  # by products with A; its density matrices are so small that they are formed
        monkeypatch.setattr(chains, "_EXACT_TOKENS", 8)
    (record,) = chain(model, IDS, MEASURE, "base")
    assert (record["dims"], record["cut"], record["layers"]) == ((3, 2, 2, 2, 3, 2, 2, 2), 4, [0, 1])
    assert (record["estimator"], "stderr" in record) == (("exact", False) if exact else ("streamed", True))
    S = bond_entropies(eager[:, :2], record["dims"])  # (layers, texts, heads, bonds)
    close = {"atol": SOFTMAX if exact else 1e-4, "rtol": 0}
    torch.testing.assert_close(record["entropy"], S.mean(1), **close)
    torch.testing.assert_close(record["spread"], S.std(1), **close)
    torch.testing.assert_close(record["s_cut"], svd_entropy(eager[:, :2]).mean(1), **close)
    p = torch.linalg.svdvals(eager[:, :2]).square()
    torch.testing.assert_close(record["top"], (p[..., 0] / p.sum(-1)).mean(1), **close)


def test_chains_of_a_large_model_are_of_some_layers(monkeypatch):
    model = llama(num_hidden_layers=5)
    monkeypatch.setattr(chains, "_BUDGET", 3 * 4 * 2 * 10 * T**3)
    every = SimpleNamespace(**{**vars(MEASURE), "chain_texts": 2})
    (record,) = chain(model, IDS, every, "base")
    assert record["layers"] == [0, 2, 4]
    monkeypatch.setattr(chains, "_BUDGET", 1)
    (record,) = chain(model, IDS, every, "base")
    assert record["layers"] == [2]
    assert chain(model, IDS, SimpleNamespace(**{**vars(MEASURE), "chain_texts": 0}), "base") == []
    with pytest.raises(ValueError, match=r"22, has the prime factors 11 · 2"):
        chain(model, IDS, SimpleNamespace(**{**vars(MEASURE), "lengths": (8, 22)}), "base")


def tuned(kind):
    """(model, base) after a fine-tuning that never was."""
    base = llama()
    if kind == "full-ft":
        model = llama().requires_grad_(False)
        for layer in model.model.layers:
            layer.self_attn.q_proj.requires_grad_(True)
            layer.self_attn.v_proj.requires_grad_(True)
        return train(model), base.state_dict()
    config = lora() if kind == "lora" else artent.MPSConfig(r=4, chi=3, target_modules=["q_proj", "v_proj"])
    return train(peft.get_peft_model(base, config)), None


@pytest.mark.parametrize("kind", ["full-ft", "lora", "mps"])
def test_nulls_of_updates(kind, monkeypatch):
    model, base = tuned(kind)
    updates = dict(artent.weight_updates(model, base, targets=MEASURE.targets))
    profiles = artent.profile_model(model, base, targets=MEASURE.targets)
    records = profile_nulls(model, base, MEASURE)
    assert [record["module"] for record in records] == list(updates)
    for record in records:
        update, profile = updates[record["module"]], profiles[record["module"]]
        # As the library defines them of a whole update.
        assert record["haar"] == pytest.approx(theory.haar_null(update, draws=2).mean, abs=1e-5)
        gaussian = theory.gaussian_null(update, draws=2)
        assert (record["gaussian"], record["gaussian_spread"]) == (gaussian.mean, gaussian.std)
        assert all(s <= bound + 1e-9 for s, bound in zip(profile.entropy.tolist(), record["bound"]))
        assert record["draws"] == (2, 2)
        page = theory.page_line(profile.dims)
        assert record["line"] == (page if kind == "full-ft" else theory.lora_line(profile.dims, profile.cut, 4))
    if kind == "mps":  # χ = 3 narrows what rank 4 does not
        by_rank = theory.rank_bound(profile.dims, profile.cut, 4)
        assert min(b - r for b, r in zip(records[0]["bound"], by_rank)) < -0.1

    # From profiles that were measured before: the same, and no dense update is read for it.
    def read(one):
        assert one.rank is not None
        return one.read()

    monkeypatch.setattr(update_nulls, "read_whole", read)
    again = profile_nulls(model, base, MEASURE, profiles=profiles)
    assert profile_nulls(model, base, MEASURE, profiles={}) == []
    for one, other in zip(records, again, strict=True):
        assert one["haar"] == pytest.approx(other["haar"], abs=1e-9)
        assert {**one, "haar": None} == {**other, "haar": None}


def test_nulls_of_large_dense_updates_take_few_draws(monkeypatch):
    monkeypatch.setattr(update_nulls, "_LARGE", 20)  # q_proj is 24×24, v_proj 12×24
    measure = SimpleNamespace(**{**vars(MEASURE), "null_draws": 5})
    records = profile_nulls(*tuned("full-ft"), measure)
    assert [record["draws"] for record in records] == [(2, 1), (5, 5)] * 2
