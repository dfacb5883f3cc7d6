import copy
import warnings

import peft
import pytest
import torch
from artent import LoRAUpdate, entanglement_profile, profile_model, weight_updates
from tuned_models import CHANGED_START, FACTORED, MERGED, Q0, QV, acted, dense, full_ft, gpt2, llama, lora, train


@pytest.mark.parametrize("case", [*FACTORED, *MERGED, *CHANGED_START])
def test_an_update_is_what_the_model_does(case):
    build, config = (FACTORED | MERGED | CHANGED_START)[case]
    model = build()
    original = copy.deepcopy(model.state_dict())
    model = peft.get_peft_model(model.float() if case in CHANGED_START else model, config).double()
    train(model)
    updates = dict(weight_updates(model, original if case in CHANGED_START else None))
    assert updates
    for name, update in updates.items():
        expected = acted(model, name, original)
        error = (dense(update) - expected).norm() / expected.norm()
        assert error < (1e-6 if case in CHANGED_START else 1e-12), name  # PEFT starts PiSSA in float32
        if name != "lm_head":
            assert isinstance(update, LoRAUpdate) == (case in FACTORED or case == "modules_to_save")
    targets = getattr(config, "modules_to_save", None) or []
    assert {name.rsplit(".")[-1] for name in updates} == {*config.target_modules, *targets}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"trainable_token_indices": [1, 2]}, ["model.embed_tokens"]),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, ["model.embed_tokens"]),
        ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, ["model.embed_tokens"]),
        ({"target_modules": ["embed_tokens", "lm_head"]}, ["model.embed_tokens", "lm_head"]),  # factors of their own
    ],
)
def test_tied_adapters_come_once(options, names):
    model = train(peft.get_peft_model(llama(), lora(**options)))
    assert [name for name in dict(weight_updates(model)) if "self_attn" not in name] == names


@pytest.mark.parametrize("merge_first", [False, True])
@pytest.mark.parametrize("config", [lora(), lora(use_dora=True)], ids=["LoRA", "DoRA"])
def test_a_merged_adapter_still_has_its_update(config, merge_first):
    model = llama()
    original = copy.deepcopy(model.state_dict())
    model = train(peft.get_peft_model(model, config))
    expected = acted(model, Q0, original)
    if merge_first:
        model.merge_adapter()
    before = copy.deepcopy(model.state_dict())
    update = dict(weight_updates(model))[Q0]
    assert torch.allclose(dense(update), expected, rtol=0, atol=1e-12)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_several_active_adapters_add_up_and_inactive_ones_do_not():
    model = llama()
    original = copy.deepcopy(model.state_dict())
    model = peft.get_peft_model(model, lora())
    model.add_adapter("second", lora(r=3, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    train(model)
    updates = dict(weight_updates(model))
    for name, rank in ((Q0, 7), (Q0.replace("q_proj", "v_proj"), 4)):
        assert len(updates[name].A) == rank
        assert torch.allclose(dense(updates[name]), acted(model, name, original), rtol=0, atol=1e-12)
    model.set_adapter("second")
    updates = dict(weight_updates(model))
    assert sorted(updates) == [Q0, Q0.replace(".0.", ".1.")]
    assert torch.allclose(dense(updates[Q0]), acted(model, Q0, original), rtol=0, atol=1e-12)


def test_a_small_update_survives_a_bfloat16_base():
    model = peft.get_peft_model(llama().bfloat16(), peft.LoHaConfig(r=2, alpha=2, target_modules=QV))
    train(model, 0.01)
    update = dict(weight_updates(model))[Q0]
    reference = copy.deepcopy(model).double()
    expected = acted(reference, Q0, reference.get_base_model().get_submodule(Q0).base_layer.state_dict(prefix=f"{Q0}."))
    assert update.dtype == torch.float32
    assert (update - expected).norm() < 1e-2 * expected.norm()  # merged in bfloat16 first it would be about 1


@pytest.mark.parametrize("case", ["plain", "rsLoRA", "patterns"])
def test_profiles_from_factors_and_from_merged_minus_base_agree(case):
    build, config = FACTORED[case]
    base = build()
    model = train(peft.get_peft_model(copy.deepcopy(base), config))
    from_factors = profile_model(model)
    from_dense = profile_model(copy.deepcopy(model).merge_and_unload(), base, targets=QV)
    assert list(from_factors) == list(from_dense)
    for name, profile in from_factors.items():
        assert torch.allclose(profile.entropy, from_dense[name].entropy, rtol=0, atol=1e-9)
        alone = entanglement_profile(dict(weight_updates(model))[name])
        assert torch.allclose(profile.entropy, alone.entropy, rtol=0, atol=1e-12)


def test_a_profile_of_live_factors_carries_gradients():
    model = train(peft.get_peft_model(llama(), lora()))
    sum(p.entropy.sum() for p in entanglement_profile([u for _, u in weight_updates(model)])).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.norm() > 0 for g in gradients)
    assert not any(p.entropy.requires_grad for p in profile_model(model).values())


def test_full_ft_is_the_difference_of_every_matrix_that_changed(tmp_path):
    base, tuned = full_ft()
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned", max_shard_size="10KB")
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 1
    expected = {
        name: tuned.get_submodule(name).weight - base.get_submodule(name).weight
        for name in ["model.embed_tokens"] + [f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qkvo"]
    }  # lm_head is tied, norms are vectors, the MLP is frozen
    pairs = [
        (tuned, base),
        (tuned, base.state_dict()),
        (tuned.state_dict(), base.state_dict()),
        (str(tmp_path / "tuned"), tmp_path / "base"),
        (tmp_path / "tuned", tmp_path / "base" / "model.safetensors"),
        (torch.compile(tuned), base),
    ]
    for pair in pairs:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            updates = dict(weight_updates(*pair))
        assert sorted(updates) == sorted(expected)
        assert all(torch.equal(updates[name], delta) for name, delta in expected.items())
    assert list(dict(weight_updates(tuned, base, targets=["lm_head"]))) == ["lm_head"]


def test_conv1d_is_turned_round_where_a_module_tells():
    base = gpt2()
    tuned = train(copy.deepcopy(base))
    name = "transformer.h.0.attn.c_attn"
    for pair in ((tuned, base), (tuned.state_dict(), base), (tuned, base.state_dict())):
        assert dict(weight_updates(*pair))[name].shape == (72, 24)
    assert dict(weight_updates(tuned.state_dict(), base.state_dict()))[name].shape == (24, 72)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj"], [Q0, Q0.replace(".0.", ".1.")]),
        ([Q0], [Q0]),
        (("layers.1.self_attn.v_proj", Q0), [Q0, "model.layers.1.self_attn.v_proj"]),
        (r".*\.0\.self_attn\.[qv]_proj", [Q0, Q0.replace("q_proj", "v_proj")]),
    ],
)
def test_targets_mean_what_they_mean_in_peft(targets, expected):
    adapted = train(peft.get_peft_model(llama(), lora()))
    base, tuned = full_ft()
    assert list(dict(weight_updates(adapted, targets=targets))) == expected
    assert list(dict(weight_updates(tuned, base, targets=targets))) == expected
