"""attn_implementation="artent": sdpa's outputs, and the statistics of eager's matrices."""

import artent.attention.implementation as implementation
import pytest
import torch
from artent.attention.masks import dense_mask
from transformers import DynamicCache, StaticCache

from artent_ext import AttentionStats, reference

ROW_TOLERANCE = 1e-5  # against eager's matrices, which are softmaxed in float32
ROUNDING = {"atol": 2e-5, "rtol": 1e-5}  # of logits of order one: another order of summation in every layer


def statistics(A):
    """(entropy, purity) of rows in float64."""
    A = A.double()
    return torch.special.entr(A).sum(-1), A.square().sum(-1)


def logsumexp_reference(model, seen):
    """lse of every layer from its queries and keys, in float64, with the mask written out."""
    values = []
    for query, key, mask in seen:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        s = query.double() @ key.double().mT * query.shape[-1] ** -0.5
        T = query.shape[2]
        visible = mask if mask is not None else torch.ones(T, T, dtype=torch.bool).tril()
        values.append(s.masked_fill(~visible, -torch.inf).logsumexp(-1))
    return values


def packed_positions(batch, T):
    return (torch.arange(T) % 7).expand(batch, -1)


def calls(ids, padding):
    T = ids.shape[1]
    band = torch.ones(T, T, dtype=torch.bool).tril() & torch.ones(T, T, dtype=torch.bool).triu(-4)
    bias = torch.zeros(3, 1, T, T).masked_fill(~band, torch.finfo(torch.float32).min)
    return {
        "plain": {},
        "left padding": {"attention_mask": padding(ids, "left")},
        "right padding": {"attention_mask": padding(ids, "right")},
        "padding inside": {"attention_mask": (ids % 5 > 0).long().index_fill(1, torch.tensor([0]), 1)},
        "packed": {"position_ids": packed_positions(3, T), "use_cache": False},
        "explicit bool mask": {"attention_mask": band[None, None].expand(3, 1, T, T)},
        "explicit additive mask": {"attention_mask": bias},
    }


CALLS = (
    "plain", "left padding", "right padding", "padding inside", "packed", "explicit bool mask",
    "explicit additive mask",
)  # fmt: skip


def for_eager(options):
    """Eager adds its mask."""
    mask = options.get("attention_mask")
    if mask is None or mask.dtype != torch.bool:
        return options
    return {**options, "attention_mask": torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)}


def check_statistics(measured, matrices, mask):
    """Of real tokens' rows, against the entropy and purity of eager's matrices."""
    real = mask.bool() if mask is not None and mask.dim() == 2 else torch.ones(3, 20, dtype=torch.bool)
    for stats, A in zip(measured, matrices, strict=True):
        assert isinstance(stats, AttentionStats)
        for mine, want in zip(stats[1:], statistics(A), strict=True):
            assert mine.shape == want.shape
            keep = real[:, None].expand_as(want)
            torch.testing.assert_close(mine[keep].double(), want[keep], atol=ROW_TOLERANCE, rtol=0)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_outputs_are_sdpas_and_statistics_eagers(tiny, ids, padding, family, call):
    options = calls(ids, padding)[call]
    model = tiny("artent", family)
    with torch.no_grad():
        ours = model(ids, labels=ids, **options)
        measured = model(ids, labels=ids, output_attentions=True, **options)
        sdpa = tiny("sdpa", family)(ids, labels=ids, **options)
        eager = tiny("eager", family)(ids, output_attentions=True, **for_eager(options))
    assert torch.equal(ours.logits, sdpa.logits)
    assert torch.equal(ours.loss, sdpa.loss)
    torch.testing.assert_close(measured.logits, sdpa.logits, **ROUNDING)
    check_statistics(measured.attentions, eager.attentions, options.get("attention_mask"))


@pytest.mark.parametrize("call", CALLS)
def test_soft_caps(tiny, ids, padding, call):
    """Gemma 2, which sdpa can't do: a cap in every layer, a window in every other."""
    options = calls(ids, padding)[call]
    model = tiny("artent", "gemma2")
    with torch.no_grad():
        plain = model(ids, **options)
        measured = model(ids, output_attentions=True, **options)
        eager = tiny("eager", "gemma2")(ids, output_attentions=True, **for_eager(options))
        uncapped = tiny("eager", "gemma2", attn_logit_softcapping=None)(ids, **for_eager(options))
    assert torch.equal(plain.logits, measured.logits)
    real = options.get("attention_mask")
    real = real.bool() if real is not None and real.dim() == 2 else torch.ones_like(ids) > 0
    torch.testing.assert_close(measured.logits[real], eager.logits[real], **ROUNDING)
    assert (uncapped.logits - eager.logits)[real].abs().max() > 1e-2
    check_statistics(measured.attentions, eager.attentions, options.get("attention_mask"))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_lse_with_shared_key_heads(tiny, ids, padding, heads):
    model = tiny("artent", num_key_value_heads=heads)
    seen = []

    def probe(module, query, key, *, key_range, **_):
        seen.append((query, key, None if key_range is None else dense_mask(key_range[:, None], key.shape[2])))

    for mask in (None, padding(ids, "left")):
        seen.clear()
        with torch.no_grad():
            out = model(ids, attention_mask=mask, output_attentions=True, attention_probe=probe)
        for stats, want in zip(out.attentions, logsumexp_reference(model, seen), strict=True):
            torch.testing.assert_close(stats.lse.double(), want, atol=1e-5, rtol=1e-6)


def test_nothing_is_measured_unless_asked(tiny, ids, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("statistics were computed without being asked for")

    for name in ("attention_stats", "scaled_dot_product_attention_with_stats"):
        monkeypatch.setattr(implementation, name, refuse)
    out = tiny("artent")(ids)
    assert out.attentions is None


@pytest.mark.parametrize(("options", "made"), [({}, 1), ({"output_attentions": True}, 0)])
def test_padding_costs_at_most_one_dense_mask_a_forward(tiny, ids, padding, monkeypatch, options, made):
    masks = []
    monkeypatch.setattr(implementation, "dense_mask", lambda *a: masks.append(dense_mask(*a)) or masks[-1])
    tiny("artent")(ids, attention_mask=padding(ids, "left"), **options)
    assert len(masks) == made


def test_padding_rows_without_keys_are_safe(tiny, ids, padding):
    mask = padding(ids, "left")
    out = tiny("artent")(ids, attention_mask=mask, output_attentions=True)
    assert torch.isfinite(out.logits).all()
    for stats in out.attentions:
        empty = ~mask.bool()[:, None].expand_as(stats.lse)
        assert torch.isneginf(stats.lse[empty]).all()
        assert (stats.entropy[empty] == 0).all()
        assert (stats.purity[empty] == 0).all()


def test_bfloat16(tiny, ids, padding):
    mask = padding(ids, "right")
    ours, sdpa = (tiny(name).bfloat16() for name in ("artent", "sdpa"))
    with torch.no_grad():
        exact = tiny("sdpa").bfloat16().double()(ids, attention_mask=mask).logits  # of the same rounded weights
        theirs = sdpa(ids, attention_mask=mask).logits
        assert torch.equal(ours(ids, attention_mask=mask).logits, theirs)
        out = ours(ids, attention_mask=mask, output_attentions=True)
    assert out.logits.dtype == torch.bfloat16
    real = mask.bool()
    error, allowed = ((x - exact)[real].norm() for x in (out.logits, theirs))
    assert error <= 1.2 * allowed
    assert all(stats.entropy.dtype == torch.float32 for stats in out.attentions)


CACHES = {
    "dynamic": lambda model: DynamicCache(config=model.config),
    "static": lambda model: StaticCache(config=model.config, max_cache_len=32),
}


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("cache", CACHES)
def test_prefill_in_chunks_then_decode(tiny, ids, padding, cache, padded, family):
    """Rows of one forward over everything, however the tokens arrive; logits are sdpa's at every step."""
    mask = padding(ids, "left") if padded else torch.ones_like(ids)
    ours, sdpa = tiny("artent", family), tiny("sdpa", family)
    caches = [CACHES[cache](model) for model in (ours, sdpa)]
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        whole = ours(ids, attention_mask=mask, position_ids=positions, output_attentions=True).attentions
        start, rows = 0, []
        for stop in (9, 17, 18, 19, 20):
            options = {"attention_mask": mask[:, :stop], "position_ids": positions[:, start:stop]}
            step = ours(ids[:, start:stop], past_key_values=caches[0], output_attentions=True, **options)
            want = sdpa(ids[:, start:stop], past_key_values=caches[1], **options)
            torch.testing.assert_close(step.logits, want.logits, **ROUNDING)
            rows.append(step.attentions)
            start = stop
    real = mask.bool()[:, None].expand_as(whole[0].entropy)
    for layer, want in enumerate(whole):
        for field in range(3):
            joined = torch.cat([step[layer][field] for step in rows], -1)
            torch.testing.assert_close(joined[real], want[field][real], atol=2e-5, rtol=0)


@pytest.mark.parametrize("cache", [None, "static"])
def test_generate(tiny, ids, padding, cache):
    options = {
        "attention_mask": padding(ids, "left"),
        "max_new_tokens": 4,
        "do_sample": False,
        "cache_implementation": cache,
        "disable_compile": True,
    }
    want = tiny("sdpa").generate(ids, **options)
    out = tiny("artent").generate(ids, output_attentions=True, return_dict_in_generate=True, **options)
    assert torch.equal(out.sequences, want)
    assert [step[0].entropy.shape[-1] for step in out.attentions] == [20, 1, 1, 1]
    assert all(isinstance(stats, AttentionStats) for step in out.attentions for stats in step)


@pytest.mark.parametrize("padded", [False, True])
def test_compiled(tiny, ids, padding, padded):
    torch.compiler.reset()
    options = {"attention_mask": padding(ids, "left")} if padded else {}
    model = tiny("artent")
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        want = model(ids, output_attentions=True, use_cache=False, **options)
        torch.testing.assert_close(compiled(ids, use_cache=False, **options).logits, want.logits)
        out = compiled(ids, output_attentions=True, use_cache=False, **options)
    for stats, eager in zip(out.attentions, want.attentions, strict=True):
        torch.testing.assert_close(stats.entropy, eager.entropy, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (4, 9), (1, 6)])
@pytest.mark.parametrize("options", [{}, {"output_attentions": True}, {"softcap": 0.5}])
def test_a_window_without_a_mask_is_kept(queries, keys, options):
    """Many queries stand at the upper left, one stands at the last key."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, T, 8, generator=generator) for heads, T in ((4, queries), (2, keys), (2, keys)))
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    out, stats = implementation.artent_attention(module, q, k, v, None, sliding_window=3, **options)
    position = torch.arange(queries) if queries > 1 else torch.tensor([keys - 1])
    distance = position[:, None] - torch.arange(keys)
    visible = {"attn_mask": (distance >= 0) & (distance < 3), "softcap": options.get("softcap")}
    q, k, v = (x.double() for x in (q, k, v))
    want, rows = reference.scaled_dot_product_attention_with_stats(q, k, v, **visible)
    torch.testing.assert_close(out.double(), want.transpose(1, 2), atol=1e-6, rtol=0)
    assert (stats is None) == ("output_attentions" not in options)
    for mine, truth in zip(stats or (), rows):
        torch.testing.assert_close(mine.double(), truth, atol=2e-6, rtol=0)


REFUSED = {  # keyword arguments of the attention function, what the message names
    "sinks": ({"s_aux": torch.zeros(4)}, "s_aux"),
    "position bias": ({"position_bias": torch.zeros(1, 4, 6, 6)}, "position_bias"),
    "a misspelt argument": ({"output_attention": True}, "output_attention"),
    "window of no causal module": ({"sliding_window": 3, "is_causal": False}, "sliding_window=3.*isn't causal"),
    "packing the mask doesn't show": ({"cu_seq_lens_q": torch.tensor([0, 2, 6])}, "position_ids"),
    "integer mask": ({"attention_mask": torch.ones(2, 1, 6, 6, dtype=torch.long)}, "int64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    options, match = REFUSED[case]
    q = k = v = torch.randn(2, 4, 6, 8)
    with pytest.raises(ValueError, match=match):
        implementation.artent_attention(torch.nn.Module(), q, k, v, **{"attention_mask": None, **options})


def test_dropout_under_a_soft_cap_is_refused():
    q = k = v = torch.randn(2, 4, 6, 8)
    with pytest.raises(NotImplementedError, match=r"dropout_p=0\.1 with softcap"):
        implementation.artent_attention(torch.nn.Module(), q, k, v, None, dropout=0.1, softcap=30.0)


def test_query_and_key_mismatch_is_named():
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 16)
    with pytest.raises(ValueError, match="key"):
        implementation.artent_attention(torch.nn.Module(), q, k, k, None, output_attentions=True)
