"""Several adapters in one model: added, switched, together, deleted; every step leaves what it leaves with LoRA."""

import copy
import os
import re

import peft
import pytest
import torch
from mps_models import (
    adapted,
    expected_delta,
    expected_model,
    inputs_of,
    layers,
    logits,
    mlp,
    mps,
    on_mlp,
    shake,
    trainable,
)


def lora(**options):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["up", "down"]} | options)


def switch_both(model):
    model.base_model.set_adapter(["default", "other"])


def within_disabled(model):
    with model.disable_adapter():
        return state(model)


# Steps of both methods: `config` makes the method's configuration.
STEPS = {
    "added": [lambda m, config: m.add_adapter("other", config())],
    "added elsewhere": [lambda m, config: m.add_adapter("other", config(target_modules=["head"]))],
    "switched": [lambda m, config: m.add_adapter("other", config()), lambda m, _: m.set_adapter("other")],
    "switched back": [
        lambda m, config: m.add_adapter("other", config(target_modules=["down", "head"])),
        lambda m, _: m.set_adapter("other"),
        lambda m, _: m.set_adapter("default"),
    ],
    "both": [lambda m, config: m.add_adapter("other", config(r=2)), lambda m, _: switch_both(m)],
    "frozen": [
        lambda m, config: m.add_adapter("other", config()),
        lambda m, _: m.base_model.set_adapter("other", inference_mode=True),
    ],
    "disabled": [lambda m, config: m.add_adapter("other", config()), lambda m, _: m.disable_adapter_layers()],
    "disabled for a while": [lambda m, config: m.add_adapter("other", config()), lambda m, _: within_disabled(m)],
    "active deleted": [
        lambda m, config: m.add_adapter("other", config()),
        lambda m, _: m.set_adapter("other"),
        lambda m, _: m.delete_adapter("other"),
    ],
    "inactive deleted": [lambda m, config: m.add_adapter("other", config()), lambda m, _: m.delete_adapter("other")],
    "first deleted": [lambda m, config: m.add_adapter("other", config()), lambda m, _: m.delete_adapter("default")],
    "all deleted": [lambda m, _: m.delete_adapter("default")],
    "saved modules": [
        lambda m, config: m.add_adapter("other", config(target_modules=["up"], modules_to_save=["head"])),
        lambda m, _: m.set_adapter("other"),
    ],
    "requires_grad": [
        lambda m, config: m.add_adapter("other", config()),
        lambda m, _: m.base_model.set_requires_grad("other"),
    ],
    "merged, one of two": [
        lambda m, config: m.add_adapter("other", config()),
        lambda m, _: m.merge_adapter(["other"]),
    ],
    "merged and switched": [
        lambda m, config: m.add_adapter("other", config()),
        lambda m, _: m.merge_adapter(),
        lambda m, _: m.set_adapter("other"),
        lambda m, _: m.unmerge_adapter(),
    ],
}


def state(model):
    """What a user sees of a model: what trains, and each adapted layer's adapters. Parameters of A count as one."""
    factor = re.compile(r"(lora|artent_mps)_([AB])\.(\w+)\.\w+$")
    tuned = [m for m in model.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]
    return {
        "trains": {factor.sub(r"\2.\3", name) for name in trainable(model)},
        "parameters": {factor.sub(r"\2.\3", name) for name, _ in model.named_parameters()},
        "layers": [(m.active_adapters, m.merged_adapters, m.disable_adapters, sorted(m.scaling)) for m in tuned],
        "adapters": list(model.peft_config),
        "active": model.active_adapters,
        "status": model.peft_config and {name: getattr(peft.get_model_status(model), name) for name in SHOWN},
    }


SHOWN = ("enabled", "active_adapters", "merged_adapters", "requires_grad", "available_adapters", "devices")


@pytest.mark.parametrize("steps", STEPS)
def test_every_step_leaves_what_it_leaves_with_lora(steps):
    models = {config: peft.get_peft_model(mlp(), config()) for config in (lora, on_mlp)}
    for step in STEPS[steps]:
        results = [step(model, config) for config, model in models.items()]
        assert results[0] == results[1]
        before, after = map(state, models.values())
        assert after == before


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_what_trains_after_loading_is_what_trains_with_lora(first, second, tmp_path):
    found = []
    for config in (lora, on_mlp):
        folder = tmp_path / config.__name__
        peft.get_peft_model(mlp(), config(modules_to_save=["head"])).save_pretrained(folder)
        model = peft.PeftModel.from_pretrained(mlp(), folder, is_trainable=first)
        states = [state(model)]
        model.load_adapter(folder, "other", is_trainable=second)
        states.append(state(model))
        model.set_adapter("other")
        found.append([*states, state(model)])
    assert found[0] == found[1]
    assert bool(found[1][0]["trains"]) == first


def test_two_together_add_up_and_each_has_its_own_gradient():
    model, x, before = adapted("three sites", torch.float64)
    model.add_adapter("other", on_mlp(r=2, lora_alpha=8, tensorize="both", chi=2))
    model.set_adapter("other")
    shake(model, 7)
    torch.testing.assert_close(model(x), expected_model("three sites", model, before, ("other",))(x))
    model(x).sum().backward()
    assert all(("other" in name) == (p.grad is not None) for name, p in model.named_parameters())
    model.zero_grad()
    switch_both(model)
    together = model(x)
    torch.testing.assert_close(together, expected_model("three sites", model, before, ("default", "other"))(x))
    together.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trainable(model)
    model.merge_adapter()
    torch.testing.assert_close(model(x), together)
    assert layers(model)["up"].merged_adapters == ["default", "other"]
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), together)
    alone = copy.deepcopy(model).merge_and_unload(adapter_names=["other"])
    torch.testing.assert_close(alone(x), expected_model("three sites", model, before, ("other",))(x))
    model.merge_adapter(["other"])
    model.merge_adapter(["default"])  # one after the other is both
    torch.testing.assert_close(model(x), together)
    torch.testing.assert_close(model.merge_and_unload()(x), together)


def test_delta_weight_is_the_definition():
    for case in ("four sites, r at the last", "A and B", "patterns", "rsLoRA", "Conv1D"):
        model, _, _ = adapted(case, torch.float64)
        for name, layer in layers(model).items():
            delta, wanted = layer.get_delta_weight("default"), expected_delta(case, name, layer)
            assert delta.shape == layer.weight.shape
            torch.testing.assert_close(delta, wanted.T if layer.is_conv1d else wanted)


def test_a_deleted_adapter_leaves_nothing_behind():
    model, x, before = adapted("two sites")
    model.add_adapter("other", on_mlp())
    model.delete_adapter("other")
    with pytest.raises(ValueError, match="other does not exist"):
        model.delete_adapter("other")
    for layer in layers(model).values():
        dicts = [value for value in {**vars(layer), **dict(layer.named_children())}.values() if hasattr(value, "keys")]
        assert not any("other" in found for found in dicts)
        assert "other" not in dict(layer.named_modules())
    model.delete_adapter("default")
    assert torch.equal(model.base_model(x), before(x))
    model.add_adapter("default", on_mlp())  # a name can be used again
    assert torch.equal(model(x), before(x))


def test_methods_do_not_mix_and_say_so():
    with pytest.raises(ValueError, match=r"ARTENT_MPS.*not compatible.*PeftMixedModel"):
        peft.get_peft_model(mlp(), on_mlp(), mixed=True)
    mixed = peft.get_peft_model(mlp(), lora(), mixed=True)
    with pytest.raises(ValueError, match=r"ARTENT_MPS.*not compatible.*PeftMixedModel"):
        mixed.add_adapter("other", on_mlp())
    for first, second in ((lora, on_mlp), (on_mlp, lora)):
        model = peft.get_peft_model(mlp(), first())
        with pytest.raises(ValueError, match=r"different peft types.*(LORA.*ARTENT_MPS|ARTENT_MPS.*LORA)"):
            model.add_adapter("other", second())
        assert list(model.peft_config) == ["default"]


def test_a_batch_of_samples_for_different_adapters_is_refused():
    """PEFT drops the argument for methods that do not know it, and would answer with the active adapter."""
    model, tokens, _ = adapted("llama, usual targets")
    model.add_adapter("other", mps(chi=2))
    with pytest.raises(ValueError, match=r"adapter_names.*set_adapter"):
        model(tokens, adapter_names=["default", "other"])
    with pytest.raises(ValueError, match=r"adapter_names.*set_adapter"):
        model.generate(input_ids=tokens, adapter_names=["default", "other"], max_new_tokens=2)
    assert torch.equal(logits(model, tokens), model(tokens, adapter_names=None).logits)


def test_status_names_the_method():
    model, _, _ = adapted("llama, usual targets")
    (first, *_), whole = peft.get_layer_status(model), peft.get_model_status(model)
    assert (first.module_type, first.available_adapters) == ("artent_mps.MPSLinear", ["default"])
    assert (whole.adapter_model_type, whole.peft_types) == ("MPSModel", {"default": "ARTENT_MPS"})
    count = sum(p.numel() for name, p in model.named_parameters() if "artent_mps_" in name)
    assert whole.trainable_params == count == model.get_nb_trainable_parameters()[0]


def test_lora_by_peft_itself_acts_alike():
    """PEFT's conversion truncates ΔW at the rank that it is given; at r it loses nothing."""
    if not hasattr(peft, "convert_to_lora"):
        pytest.skip(f"peft {peft.__version__} converts nothing to LoRA")
    for case in ("two sites", "A and B"):
        model, x, before = adapted(case)
        config, weights = peft.convert_to_lora(model, rank=4)
        twin = peft.get_peft_model(copy.deepcopy(before), config).eval()
        assert not peft.set_peft_model_state_dict(twin, weights).unexpected_keys
        torch.testing.assert_close(twin(x), model(x), rtol=1e-4, atol=1e-5)
    assert not adapted("Conv1D")[0].supports_lora_conversion()


def test_adapters_beside_modules_that_train_whole():
    model = peft.get_peft_model(mlp(), mps(target_modules=["up"], modules_to_save=["head"]))
    model.add_adapter("other", mps(target_modules=["down"], modules_to_save=["head"]))
    x = inputs_of(mlp())
    for name in ("other", "default"):
        model.set_adapter(name)
        shake(model, len(name))
        assert torch.equal(
            model.base_model.model.head.modules_to_save[name](torch.ones(16)), head(model)(torch.ones(16))
        )
        assert {n.split(".")[-2] for n in trainable(model)} == {name}
    with pytest.raises(ValueError):
        switch_both(model)
    assert model(x).isfinite().all()


def head(model):
    return model.base_model.model.head


def test_the_peft_that_make_asks_for_is_the_one_tested():
    """``make test`` runs this folder again with the oldest PEFT in PYTHONPATH."""
    from artent.adapters.mps.peft_shim import TESTED

    asked = os.environ.get("ARTENT_TESTS_PEFT")
    assert asked in (None, peft.__version__)
    assert asked is None or TESTED.startswith(f"{asked} to ")
    assert asked is not None or TESTED.endswith(f" to {peft.__version__}")
