"""attention_entanglement against float64 singular values of the matrices that eager attention returns."""

import json
import math

import artent
import artent.attention.plan as plan
import artent.attention.probe as probe
import peft
import pytest
import torch
from artent import theory
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel

LENGTHS = (4, 9)


def svd_entropy(A):
    p = torch.linalg.svdvals(A.double()).square()
    return torch.special.entr(p / p.sum(-1, keepdim=True)).sum(-1)


def varied(A, variant):
    """The definition of each variant, written on the matrix."""
    A = A.double()
    if variant == "sink_removed":
        A = A[..., 1:, 1:]
        return A / A.sum(-1, keepdim=True)
    if variant == "row_normalised":
        return A / A.norm(dim=-1, keepdim=True)
    return A


def expected(eager, ids, mask, lengths, variant):
    """S_ext (lengths, layers, batch, heads): every prefix of every text is run alone, without padding."""
    values = []
    for length in lengths:
        texts = []
        for row, real in zip(ids, mask.bool()):
            with torch.no_grad():
                attentions = eager(row[real][None, :length], output_attentions=True).attentions
            texts.append(torch.stack([svd_entropy(varied(A[0], variant)) for A in attentions]))
        values.append(torch.stack(texts, 1))
    return torch.stack(values)


def padded(padding, ids, side):
    if side == "inside":
        return (ids % 5 > 0).long()
    return padding(ids, side) if side else torch.ones_like(ids)


@pytest.mark.parametrize("variant", ["raw", "sink_removed", "row_normalised"])
@pytest.mark.parametrize("side", ["left", "right", "inside", None])
def test_prefixes_of_padded_texts(tiny, ids, padding, side, variant):
    mask = padded(padding, ids, side)
    inputs = {"input_ids": ids, "attention_mask": mask} if side else ids
    result = artent.attention_entanglement(tiny("sdpa"), inputs, lengths=LENGTHS, variant=variant)
    want = expected(tiny("eager"), ids, mask, LENGTHS, variant)
    # With left padding a text's positions start late; rotary attention depends on differences only, to rounding.
    torch.testing.assert_close(result.s_ext, want, atol=2e-5, rtol=0)
    assert result.methods == ("exact", "exact")
    assert (result.s_ext_stderr == 0).all()
    for bound in (result.s_ext_lower, result.s_ext_upper):
        torch.testing.assert_close(bound, result.s_ext, atol=1e-9, rtol=0)
    assert result.tokens == tuple(mask.sum(-1).tolist())
    assert (result.lengths, result.layers, result.variant) == (LENGTHS, (0, 1), variant)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_row_statistics_are_means_over_real_tokens(tiny, ids, padding, family):
    mask = padding(ids, "right")
    result = artent.attention_entanglement(tiny("eager", family), {"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        attentions = tiny("eager", family)(ids, attention_mask=mask, output_attentions=True).attentions
    for layer, A in enumerate(attentions):
        A = A.double()
        for text, real in enumerate(mask.bool()):
            rows = A[text][:, real]
            want = torch.special.entr(rows).sum(-1).mean(-1), rows.square().sum(-1).mean(-1)
            got = result.entropy[layer, text], result.purity[layer, text]
            torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
            own = svd_entropy(A[text][:, real][:, :, real][:, :9, :9])
            torch.testing.assert_close(result.s_ext[0, layer, text], own, atol=1e-5, rtol=0)


# Few columns and steps, so that texts of some hundred tokens are estimated, not formed.
STREAMED = {"lengths": (70, 100, 150), "method": "streamed", "rank": 8, "steps": 4}


@pytest.mark.parametrize(
    ("family", "side", "variant"),
    [
        ("llama", None, "raw"),
        ("llama", "left", "raw"),
        ("llama", "right", "sink_removed"),
        ("llama", "inside", "raw"),
        ("llama", "inside", "sink_removed"),
        ("llama", None, "row_normalised"),
        ("mistral", "left", "row_normalised"),
        ("mistral", None, "sink_removed"),
        ("mistral", "left", "raw"),
        ("gemma2", None, "raw"),
        ("gemma2", "left", "sink_removed"),
    ],
)
def test_streamed_is_exact_to_its_stated_error(tiny, family, side, variant):
    ids = torch.randint(1, 61, (3, 150), generator=torch.Generator().manual_seed(4))
    real = torch.arange(150) < torch.tensor([[150], [120], [80]])
    mask = {"left": real.flip(-1), "right": real, "inside": ids % 8 > 0, None: real | True}[side]
    options = {**STREAMED, "lengths": STREAMED["lengths"][: 2 if side == "inside" else 3], "variant": variant}
    model, inputs = tiny("sdpa" if family != "gemma2" else "eager", family), {"input_ids": ids, "attention_mask": mask}
    exact = artent.attention_entanglement(model, inputs, **{**options, "method": "exact"})
    got = artent.attention_entanglement(model, inputs, **options)
    assert set(got.methods) == {"streamed"}
    assert torch.equal(got.s_ext.isnan(), exact.s_ext.isnan())
    assert torch.equal(got.entropy, exact.entropy)
    there = ~exact.s_ext.isnan()
    S, truth = got.s_ext[there], exact.s_ext[there]
    assert (got.s_ext_lower[there] <= truth).all()
    assert (truth <= got.s_ext_upper[there]).all()
    assert (got.s_ext_lower[there] <= S).all()
    assert (got.s_ext_upper[there] >= S).all()
    stderr = got.s_ext_stderr[there]
    assert (stderr > 0).all()
    assert ((S - truth) / stderr).square().mean().sqrt() < 2
    assert ((S - truth) / truth).square().mean().sqrt() < 0.05  # of eight probes


def test_auto_is_exact_on_short_prefixes_and_streamed_on_long_ones(tiny, monkeypatch):
    monkeypatch.setattr(plan, "EXACT_TOKENS", 70)
    ids = torch.randint(1, 61, (1, 150), generator=torch.Generator().manual_seed(4))
    got, exact, streamed = (
        artent.attention_entanglement(tiny("artent"), ids, **{**STREAMED, "method": method})
        for method in ("auto", "exact", "streamed")
    )
    assert got.methods == ("exact", "streamed", "streamed")
    torch.testing.assert_close(got.s_ext[0], exact.s_ext[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(got.s_ext[1:], streamed.s_ext[1:], atol=1e-9, rtol=0)


def test_random_signs_are_fixed_by_the_seed_and_differ_between_heads(tiny):
    model, ids = tiny("artent"), torch.randint(1, 61, (1, 150), generator=torch.Generator().manual_seed(4))
    options = {**STREAMED, "lengths": 150}
    both = artent.attention_entanglement(model, ids, **options)
    assert torch.equal(artent.attention_entanglement(model, ids, **options).s_ext, both.s_ext)
    alone = artent.attention_entanglement(model, ids, layers=1, **options)
    torch.testing.assert_close(alone.s_ext[:, 0], both.s_ext[:, 1], atol=1e-9, rtol=0)
    other = artent.attention_entanglement(model, ids, **options, seed=100)
    assert (other.s_ext != both.s_ext).all()
    for layer in model.model.layers:  # every head the same: what is left is the signs
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            weight = projection.weight.data
            weight.copy_(weight[:8].repeat(len(weight) // 8, 1))
    alike = artent.attention_entanglement(model, ids, **options).s_ext
    assert len(alike[0, 0, 0].unique()) == 4


class Largest(TorchDispatchMode):
    """The most elements that any tensor had."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


def test_a_long_text_needs_no_square_of_its_length(tiny):
    T = 5000
    model = tiny("artent", num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    model.model.layers[0].self_attn.q_proj.weight.data.zero_()  # uniform over the keys before
    ids = torch.randint(1, 61, (1, T), generator=torch.Generator().manual_seed(4))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with Largest() as seen:
        got = artent.attention_entanglement(model, inputs, lengths=(T,), rank=8, steps=3)
    assert seen.elements < T * T / 10
    keys = torch.arange(1, T + 1, dtype=torch.float64)
    assert got.purity.item() == pytest.approx((1 / keys).mean().item(), rel=1e-5)
    assert got.entropy.item() == pytest.approx(keys.log().mean().item(), rel=1e-5)
    short, longer = theory.causal_uniform(400), theory.causal_uniform(800)  # concave in ln T
    assert longer < got.s_ext.item() < longer + (longer - short) / math.log(2) * math.log(T / 800)
    assert got.s_ext_lower.item() <= got.s_ext.item() <= got.s_ext_upper.item()


def test_progress_is_told_layer_by_layer(tiny, ids):
    told = []
    artent.attention_entanglement(tiny("artent"), ids, progress=told.append)
    assert told == [0, 1]


def test_default_lengths_halve_the_shortest_text(tiny):
    ids = torch.randint(1, 61, (2, 100), generator=torch.Generator().manual_seed(2))
    result = artent.attention_entanglement(tiny("artent"), ids, layers=[1])
    assert result.lengths == (25, 50, 100)
    assert result.s_ext.shape == (3, 1, 2, 4)


@pytest.mark.parametrize(
    ("method", "call"), [("exact", "prefix_entropies"), ("streamed", "attention_spectral_entropy")]
)
def test_few_heads_at_a_time_give_the_same(tiny, ids, monkeypatch, method, call):
    want = artent.attention_entanglement(tiny("artent"), ids, lengths=LENGTHS, method=method)
    sizes = []
    one_group = getattr(probe, call)

    def count(x, *args, **options):
        sizes.append(x.shape[-3])
        return one_group(x, *args, **options)

    monkeypatch.setattr(probe, call, count)
    monkeypatch.setattr(probe, "_GROUP_BYTES", 1)
    got = artent.attention_entanglement(tiny("artent"), ids, lengths=LENGTHS, method=method)
    assert set(sizes) == {1}
    torch.testing.assert_close(got.s_ext, want.s_ext, atol=1e-12 if method == "exact" else 1e-6, rtol=0)


def test_longer_lengths_leave_short_texts_unmeasured(tiny, ids, padding):
    inputs = {"input_ids": ids, "attention_mask": padding(ids, "left")}
    result = artent.attention_entanglement(tiny("artent"), inputs, lengths=(9, 15, 20))
    measured = ~result.s_ext.isnan()[:, 0, :, 0]
    assert measured.tolist() == [[True, True, True], [True, True, False], [True, False, False]]
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert record["s_ext"][2][0][2] == [None] * 4
    assert record["lengths"] == [9, 15, 20]
    assert record["lse"] == result.lse.tolist()


def test_chosen_layers_come_in_the_order_asked(tiny, ids):
    both = artent.attention_entanglement(tiny("artent"), ids)
    swapped = artent.attention_entanglement(tiny("artent"), ids, layers=(1, 0))
    assert swapped.layers == (1, 0)
    assert torch.equal(swapped.s_ext.flip(1), both.s_ext)
    assert torch.equal(swapped.purity.flip(0), both.purity)


def test_bfloat16_is_near_float32(tiny, ids):
    want = artent.attention_entanglement(tiny("sdpa"), ids).s_ext
    got = artent.attention_entanglement(tiny("sdpa").bfloat16(), ids).s_ext
    torch.testing.assert_close(got, want, atol=0.1, rtol=0)


def adapted(model, **options):
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, **options)
    return peft.get_peft_model(model, config)


def test_under_peft_is_the_merged_model(tiny, ids):
    model = adapted(tiny("sdpa"), init_lora_weights=False)
    got = artent.attention_entanglement(model.train(), ids).s_ext
    base = artent.attention_entanglement(tiny("sdpa"), ids).s_ext
    want = artent.attention_entanglement(model.merge_and_unload(), ids).s_ext
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    assert (got - base).abs().max() > 1e-2


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "artent"])
def test_the_model_is_left_as_it_was(tiny, ids, implementation):
    model = adapted(tiny(implementation))
    model.train()
    model.base_model.model.model.layers[0].eval()
    model.base_model.model.gradient_checkpointing_enable()
    before = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    state = torch.get_rng_state()
    result = artent.attention_entanglement(model, {"input_ids": ids, "labels": ids})
    assert result.layers == (0, 1)
    assert result.s_ext.shape == (1, 2, 3, 4)
    assert [(module.training, len(module._forward_hooks)) for module in model.modules()] == before
    assert model.config._attn_implementation == implementation
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_restored_after_an_error(tiny, ids):
    model = tiny("sdpa").train()
    with pytest.raises(ValueError, match="layers"):
        artent.attention_entanglement(model, ids, layers=(7,))
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_a_compiled_model_is_measured_uncompiled(tiny, ids):
    torch.compiler.reset()
    model = tiny("sdpa")
    compiled = torch.compile(model, backend="aot_eager")
    want = artent.attention_entanglement(model, ids)
    got = artent.attention_entanglement(compiled, ids)
    assert torch.equal(got.s_ext, want.s_ext)
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids).logits)


IDS = torch.ones(2, 8, dtype=torch.long)
LONG = torch.ones(1, 4097, dtype=torch.long)
BAD = {  # arguments, error, what the message names
    "variant": ({"inputs": IDS, "variant": "sinkless"}, ValueError, "sinkless.*'sink_removed'"),
    "floating ids": ({"inputs": IDS.float()}, TypeError, "input_ids is torch.float32"),
    "one text without batch": ({"inputs": IDS[0]}, TypeError, r"\(8,\).*\(batch, T\)"),
    "empty batch": ({"inputs": IDS[:0]}, ValueError, r"\(0, 8\): no text"),
    "empty text": ({"inputs": IDS[:, :0]}, ValueError, r"\(2, 0\): no text"),
    "text": ({"inputs": "hello"}, TypeError, "str"),
    "lists": ({"inputs": {"input_ids": [[1, 2]]}}, TypeError, "list.*return_tensors"),
    "no ids": ({"inputs": {"attention_mask": IDS}}, TypeError, "input_ids"),
    "mask of another shape": (
        {"inputs": {"input_ids": IDS, "attention_mask": IDS[:, :4]}},
        ValueError,
        r"attention_mask.*\(2, 4\).*\(2, 8\)",
    ),
    "a text of padding": (
        {"inputs": {"input_ids": IDS, "attention_mask": IDS * torch.tensor([[1], [0]])}},
        ValueError,
        r"text\(s\) \[1\]",
    ),
    "length beyond the texts": ({"inputs": IDS, "lengths": (4, 9)}, ValueError, r"\(4, 9\).*1 … 8"),
    "length zero": ({"inputs": IDS, "lengths": (0,)}, ValueError, "1 … 8"),
    "nothing left without the sink": (
        {"inputs": IDS, "lengths": (1,), "variant": "sink_removed"},
        ValueError,
        "2 … 8",
    ),
    "fractional length": ({"inputs": IDS, "lengths": (4.0,)}, TypeError, "lengths"),
    "no length": ({"inputs": IDS, "lengths": ()}, TypeError, "lengths"),
    "unknown layer": ({"inputs": IDS, "layers": [0, 2]}, ValueError, r"\(0, 2\).*\[0, 1\]"),
    "no layer": ({"inputs": IDS, "layers": []}, ValueError, "layers"),
    "too long to be exact": ({"inputs": LONG, "method": "exact"}, ValueError, "4097 tokens.*4096.*'streamed'"),
    "method": ({"inputs": IDS, "method": "krylov"}, ValueError, "krylov.*'streamed'"),
    "rank": ({"inputs": IDS, "rank": 0}, ValueError, "rank is 0"),
    "steps": ({"inputs": IDS, "steps": 2.0}, ValueError, "steps is 2.0"),
    "seed": ({"inputs": IDS, "seed": -1}, ValueError, "seed is -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(tiny, case):
    options, error, match = BAD[case]
    with pytest.raises(error, match=match):
        artent.attention_entanglement(tiny("sdpa"), **options)


def test_models_that_cannot_be_measured(tiny, ids):
    both_ways = tiny("sdpa", is_causal=False)
    for layer in both_ways.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(ValueError, match="later tokens"):
        artent.attention_entanglement(both_ways, ids)

    broken = tiny("sdpa")
    torch.nn.init.constant_(broken.model.layers[1].self_attn.q_proj.weight, torch.nan)
    with pytest.raises(ValueError, match="layer 1 holds NaN"):
        artent.attention_entanglement(broken, ids)

    virtual = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ValueError, match="virtual tokens"):
        artent.attention_entanglement(peft.get_peft_model(tiny("sdpa"), virtual), ids)

    class Plain(torch.nn.Linear):
        def forward(self, input_ids, **_):
            return input_ids

    with pytest.raises(ValueError, match="attention interface"):
        artent.attention_entanglement(Plain(2, 2), ids)


def test_left_padding_of_a_model_with_absolute_positions_is_no_shift():
    config = GPT2Config(vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 40, (1, 12))
    alone = artent.attention_entanglement(model, ids, lengths=12)
    padded = torch.cat([torch.zeros(1, 9, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(1, 9, dtype=torch.long), torch.ones_like(ids)], 1)
    beside = artent.attention_entanglement(model, {"input_ids": padded, "attention_mask": mask}, lengths=12, layers=1)
    torch.testing.assert_close(beside.s_ext[:, 0], alone.s_ext[:, 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        ("a/path", torch.ones(1, 4).long(), "model is str"),
        (None, {"input_ids": torch.ones(1, 4).long(), "attention_mask": [1, 1, 1, 1]}, "attention_mask is list"),
    ],
)
def test_inputs_of_the_wrong_kind(tiny, model, inputs, message):
    with pytest.raises(TypeError, match=message):
        artent.attention_entanglement(model or tiny("sdpa"), inputs)
