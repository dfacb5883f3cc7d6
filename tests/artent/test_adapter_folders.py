"""Updates of adapters as PEFT saves them."""

import copy
import warnings

import peft
import pytest
import torch
from artent import weight_updates
from safetensors.torch import save_file
from tuned_models import CHANGED_START, FACTORED, MERGED, acted, dense, gpt2, llama, lora, train


@pytest.mark.parametrize("case", [*MERGED, *CHANGED_START])
def test_an_adapter_folder_of_any_method_is_merged_onto_base(case, tmp_path):
    build, config = (MERGED | CHANGED_START)[case]
    model = build().float()
    original = copy.deepcopy(model.state_dict())
    save_file({name: tensor.clone() for name, tensor in original.items()}, tmp_path / "base.safetensors")
    model = train(peft.get_peft_model(model, config))
    model.save_pretrained(tmp_path / "adapter")
    updates = dict(weight_updates(tmp_path / "adapter", tmp_path / "base.safetensors"))
    assert updates
    for name, update in updates.items():
        expected = acted(copy.deepcopy(model).double(), name, {k: v.double() for k, v in original.items()})
        assert (dense(update).double() - expected).norm() < 1e-5 * expected.norm(), name
    random = torch.random.get_rng_state()
    assert (
        list(dict(weight_updates(str(tmp_path / "adapter"), original, targets=list(updates)[:1]))) == list(updates)[:1]
    )
    assert torch.equal(random, torch.random.get_rng_state())


@pytest.mark.parametrize("case", ["plain", "rsLoRA", "patterns", "embedding", "Conv1D", "modules_to_save"])
def test_an_adapter_folder_reads_as_the_live_model(case, tmp_path):
    build, config = (FACTORED | MERGED)[case]
    model = build()
    original = copy.deepcopy(model.state_dict())
    model = train(peft.get_peft_model(model, config))
    model.save_pretrained(tmp_path)
    live = {name: dense(update) for name, update in weight_updates(model)}
    saved = {name: dense(update) for name, update in weight_updates(tmp_path, original)}
    assert sorted(live) == sorted(saved)
    for name, delta in live.items():
        assert torch.allclose(saved[name], delta, rtol=1e-12, atol=0 if case != "modules_to_save" else 1e-12)
    factors_only = set(dict(weight_updates(str(tmp_path))))
    assert factors_only == set(live) - {"lm_head"}


SAVED_WHOLE = {
    "a Conv1D, base a model": (
        gpt2,
        {"target_modules": ["c_attn"], "modules_to_save": ["c_fc"], "fan_in_fan_out": True},
    ),
    "rows of tokens": (llama, {"trainable_token_indices": [5, 3]}),
    "rows of tokens by module": (llama, {"trainable_token_indices": {"embed_tokens": [7]}, "use_dora": True}),
}


@pytest.mark.parametrize("case", SAVED_WHOLE)
def test_what_an_adapter_saves_whole_is_read_where_base_is_given(case, tmp_path):
    build, options = SAVED_WHOLE[case]
    base = build()
    model = train(peft.get_peft_model(build(), lora(**options)))
    model.save_pretrained(tmp_path)
    live = {name: dense(update) for name, update in weight_updates(model)}
    saved = {name: dense(update) for name, update in weight_updates(tmp_path, base)}
    assert sorted(live) == sorted(saved)
    for name, delta in live.items():
        assert torch.allclose(saved[name], delta, rtol=1e-12, atol=1e-12), name
    if not options.get("use_dora"):
        whole = next(name for name in live if name.endswith(("c_fc", "embed_tokens")))
        with pytest.warns(UserWarning, match=f"saved whole.*base: {whole}"):
            assert set(dict(weight_updates(tmp_path))) == set(live) - {whole}
        with pytest.raises(ValueError, match=f"needs base: {whole}"):
            list(weight_updates(tmp_path, targets=[whole]))


def test_a_head_that_is_saved_as_the_embedding_it_is_tied_to_is_found(tmp_path):
    llama().save_pretrained(tmp_path / "base")  # ties its head
    for name, options in {
        "copies": {"modules_to_save": ["lm_head"]},
        "factors": {"target_modules": ["lm_head"]},
    }.items():
        model = train(peft.get_peft_model(llama(), lora(**options)))
        model.save_pretrained(tmp_path / name)
        live = {name: dense(update) for name, update in weight_updates(model)}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            saved = {name: dense(update) for name, update in weight_updates(tmp_path / name, tmp_path / "base")}
        assert sorted(saved) == sorted(live)
        assert torch.allclose(saved["lm_head"], live["lm_head"], rtol=1e-12, atol=1e-12)


def test_a_base_that_does_not_fit_an_adapter_is_refused_though_its_factors_need_none(tmp_path):
    train(peft.get_peft_model(llama(), lora())).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"base has no weight.*q_proj"):
        list(weight_updates(tmp_path, {"other.weight": torch.randn(5, 5)}))
    partial = {name: w for name, w in llama().state_dict().items() if "layers.1" not in name}
    with pytest.warns(UserWarning, match=r"no weight of 2 of its 4 modules"):
        assert len(dict(weight_updates(tmp_path, partial))) == 4
    with pytest.raises(ValueError, match=r"q_proj: shape \(24, 24\) in the tuned model, \(32, 32\) in base"):
        list(weight_updates(tmp_path, llama(hidden_size=32)))
