"""One adapter: its start, what it computes in every dtype, what trains, switched off, merged, taken out."""

import copy

import peft
import pytest
import torch
from mps_models import CASES, adapted, expected_model, factors, layers, logits, mlp, mps, on_mlp, trainable
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

every_case = pytest.mark.parametrize("case", CASES)


def in_float64(inputs):
    return inputs.double() if inputs.is_floating_point() else inputs


def ours(names):
    return {name for name in names if "artent_mps_" in name}


@every_case
def test_the_start_changes_nothing_and_only_adapters_train(case):
    model, inputs, before = adapted(case, shaken=False)
    config, modules = CASES[case][1:]
    assert set(layers(model)) == {name for name in dict(before.named_modules()) if name.endswith(tuple(modules))}
    assert torch.equal(logits(model, inputs), logits(before, inputs))
    saved = {name for name in trainable(model) if ".modules_to_save.default." in name}
    assert bool(saved) == bool(config.modules_to_save)
    assert trainable(model) == saved | ours(dict(model.named_parameters()))
    shapes = {name: tuple(p.shape) for name, p in before.named_parameters()}
    base = {n.replace(".base_layer", ""): tuple(p.shape) for n, p in model.get_base_model().named_parameters()}
    assert shapes.items() <= {n.replace(".original_module", ""): shape for n, shape in base.items()}.items()


@every_case
def test_the_output_is_that_of_dense_weights(case):
    model, inputs, before = adapted(case, torch.float64)
    wanted = logits(expected_model(case, model, before), inputs)
    assert (wanted - logits(before, inputs)).abs().max() > 1e-2
    torch.testing.assert_close(logits(model, inputs), wanted, rtol=1e-11, atol=1e-12)
    random_start, inputs, before = adapted(case, torch.float64, shaken=False, init_weights=False)
    assert (logits(random_start, inputs) - logits(before, inputs)).abs().max() > 1e-3


@every_case
def test_merged_and_unmerged_agree_and_every_way_out_leads_back(case):
    model, inputs, before = adapted(case)
    original = copy.deepcopy(before.state_dict())
    with torch.no_grad():
        beside, wanted = logits(model, inputs), logits(expected_model(case, model, before), in_float64(inputs))
    for safe in (False, True):
        model.merge_adapter(safe_merge=safe)
        torch.testing.assert_close(logits(model, inputs), beside, rtol=1e-5, atol=1e-5)
        with pytest.warns(UserWarning, match="already merged"):
            model.merge_adapter(safe_merge=safe)
        with model.disable_adapter():  # takes the adapter out of the weights
            torch.testing.assert_close(logits(model, inputs), logits(before, inputs), rtol=1e-5, atol=1e-5)
        assert not any(layer.merged for layer in layers(model).values())
        model.merge_adapter()
        model.unmerge_adapter()
        torch.testing.assert_close(logits(model, inputs), beside, rtol=1e-5, atol=1e-5)
    for name, layer in layers(model).items():
        torch.testing.assert_close(layer.weight, original[f"{name}.weight"], rtol=1e-5, atol=1e-6)
    with pytest.warns(UserWarning, match="[Aa]lready unmerged"):
        model.unmerge_adapter()
    merged, plain = copy.deepcopy(model).merge_and_unload(safe_merge=True), copy.deepcopy(model).unload()
    torch.testing.assert_close(logits(merged, inputs), beside, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(merged, inputs).double(), wanted, rtol=1e-5, atol=1e-5)
    for bare in (merged, plain):
        assert not any(isinstance(module, BaseTunerLayer) for module in bare.modules())
        assert bare.state_dict().keys() == original.keys()
    if not CASES[case][1].modules_to_save:
        torch.testing.assert_close(logits(plain, inputs), logits(before, inputs), rtol=1e-5, atol=1e-5)


@every_case
def test_a_step_moves_the_adapter_and_nothing_else(case):
    model, inputs, before = adapted(case, init_weights=False, shaken=False)
    model.train()
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    logits(model, inputs).square().mean().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trainable(model)
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.grad is not None)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, initial[name])}
    assert moved == trainable(model)
    model.eval()
    enabled = logits(model, inputs)
    with model.disable_adapter():
        assert not moved & trainable(model)
        assert torch.equal(logits(model, inputs), logits(before, inputs))
    assert torch.equal(logits(model, inputs), enabled)
    assert trainable(model) == moved


DTYPES = {
    "float16": (torch.float16, torch.float16, None),
    "bfloat16": (torch.bfloat16, torch.bfloat16, None),
    "bfloat16 base, float32 adapter": (torch.bfloat16, torch.float32, None),
    "float32 under bfloat16 autocast": (torch.float32, torch.float32, torch.bfloat16),
    "bfloat16 base, float32 adapter, autocast": (torch.bfloat16, torch.float32, torch.bfloat16),
}


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("case", ["three sites", "four sites, r at the last", "A and B", "Conv1D"])
def test_lower_precision_costs_no_more_than_it_costs_lora(case, dtypes):
    """The error against float64 is within twice that of PEFT's LoRA with the same factors, as is the merged one's."""
    base, adapter, autocast = DTYPES[dtypes]
    upcast = adapter != base
    model, inputs, before = adapted(case, base, autocast_adapter_dtype=upcast)
    exact = logits(expected_model(case, model, before), in_float64(inputs))
    config = CASES[case][1]
    twin = peft.LoraConfig(r=config.r, lora_alpha=config.lora_alpha, target_modules=config.target_modules)
    lora = peft.get_peft_model(copy.deepcopy(before), twin, autocast_adapter_dtype=upcast).eval()
    with torch.no_grad():
        for name, layer in layers(model).items():
            pair = lora.get_base_model().get_submodule(name)
            for factor, value in zip((pair.lora_A, pair.lora_B), factors(layer)):
                factor["default"].weight.copy_(torch.from_numpy(value))
    assert {p.dtype for n, p in model.named_parameters() if "artent_mps_" in n} == {adapter}
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        found, allowed = logits(model, inputs), logits(lora, inputs)
        found.float().square().mean().backward()
        merged = logits(copy.deepcopy(model).merge_and_unload(), inputs)
    assert found.dtype == merged.dtype == allowed.dtype == (autocast or base)
    error, merged_error, budget = ((out.double() - exact).norm() for out in (found, merged, allowed))
    assert 0 < error < 2 * budget
    assert 0 < merged_error < 2 * budget
    assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in model.parameters() if p.requires_grad)


def test_a_merge_that_is_not_finite_raises_and_changes_nothing():
    model, _, before = adapted("two sites")
    with torch.no_grad():
        layers(model)["up"].artent_mps_A["default"].core_1[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or Inf.*'default'"):
        model.merge_adapter(safe_merge=True)
    with pytest.raises(ValueError, match="NaN or Inf"):
        model.merge_and_unload(safe_merge=True)
    layer = layers(model)["up"]
    assert torch.equal(layer.weight, before.up.weight)
    assert not layer.merged
    overflow, _, before = adapted("two sites", torch.float16)
    with torch.no_grad():
        layers(overflow)["up"].artent_mps_B["default"].weight.fill_(1e6)
    with pytest.raises(ValueError, match=r"overflows torch\.float16"):
        overflow.merge_adapter(safe_merge=True)
    assert torch.equal(layers(overflow)["up"].weight, before.up.weight)


class PackedLinear(nn.Linear):
    """As 4-bit layers are: the weight is bytes, two values in each, and its shape tells nothing."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.dequantised = self.weight.detach().clone()
        self.weight = nn.Parameter(torch.zeros(inputs * outputs // 2, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.dequantised, self.bias)


def test_a_quantised_layer_trains_beside_its_weight_and_cannot_be_merged():
    torch.manual_seed(0)
    model = peft.get_peft_model(nn.Sequential(PackedLinear(24, 12)), mps(target_modules=["0"], init_weights=False))
    layer, x = layers(model)["0"], torch.randn(5, 24)
    torch.testing.assert_close(
        model(x), layer.base_layer(x) + x @ layer.get_delta_weight("default").T, rtol=1e-5, atol=1e-5
    )
    packed = layer.weight.clone()
    for way in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"torch\.uint8.*floating point"):
            way()
    assert torch.equal(layer.weight, packed)
    assert not layer.merged


def test_a_float32_delta_is_rounded_once_into_a_lower_precision_weight():
    model, _, before = adapted("four sites, r at the last", torch.bfloat16)
    expected = expected_model("four sites, r at the last", model, before)
    model.merge_adapter()
    for name, layer in layers(model).items():
        exact = expected.get_submodule(name).weight
        torch.testing.assert_close(layer.weight.double(), exact, rtol=2**-8, atol=1e-6)  # half a bfloat16 ulp


@pytest.mark.parametrize("shape", [(24,), (0, 24), (2, 0, 24), (2, 3, 1, 24)])
def test_inputs_of_every_shape(shape):
    model, _, before = adapted("A and B", torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found = model(x)
    torch.testing.assert_close(found, expected_model("A and B", model, before)(x))
    found.sum().backward()
    assert x.grad.shape == shape


def test_shapes_pass_through_without_values():
    """On the meta device, as tools do that plan memory before they load."""
    model = adapted("four sites, r at the last")[0].to("meta")
    assert model(torch.empty(3, 24, device="meta")).shape == (3, 8)


def test_dropout_acts_on_the_adapter_while_training_only():
    model, inputs, _ = adapted("dropout")
    quiet = logits(model, inputs)
    assert torch.equal(quiet, logits(model, inputs))
    model.train()
    torch.manual_seed(0)
    first, second = logits(model, inputs), logits(model, inputs)
    assert not torch.equal(first, second)
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), logits(mlp(), inputs))


def test_the_base_biases_train_where_asked():
    kinds = {"all": {"up", "down", "norm"}, "artent_mps_only": {"up", "down"}}
    from artent.adapters.mps.peft_shim import SAVES_BIAS

    for kind, biased in kinds.items():
        if not SAVES_BIAS:
            with pytest.raises(ValueError, match=r"bias.*peft ≥ 0\.21"):
                on_mlp(bias=kind)
            continue
        model = peft.get_peft_model(mlp(), on_mlp(bias=kind))
        assert {n.split(".")[2] for n in trainable(model) if n.endswith("bias")} == biased
        saved = peft.get_peft_model_state_dict(model)
        assert sum(name.endswith("bias") for name in saved) == len(biased)
        with pytest.warns(UserWarning, match="bias"), model.disable_adapter():
            pass
