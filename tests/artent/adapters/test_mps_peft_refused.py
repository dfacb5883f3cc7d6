"""What a user can get wrong: values, modules, PEFT itself. The message names it, and nothing is left half done."""

import copy
import re
import subprocess
import sys

import peft
import pytest
import torch
from artent import MPSConfig
from mps_models import adapted, inputs_of, layers, llama, logits, mlp, mps, on_mlp, trainable
from torch import nn

VALUES = {
    "r, zero": ({"r": 0}, ValueError, "r must be at least 1, got 0"),
    "r, negative": ({"r": -4}, ValueError, "r must be at least 1, got -4"),
    "r, a float": ({"r": 4.0}, TypeError, "r must be a whole number, got float"),
    "r, a bool": ({"r": True}, TypeError, "r must be a whole number, got bool"),
    "lora_alpha, a word": ({"lora_alpha": "8"}, TypeError, "lora_alpha must be a number, got str"),
    "lora_alpha, zero": ({"lora_alpha": 0}, ValueError, "lora_alpha must be a positive number, got 0"),
    "lora_alpha, NaN": ({"lora_alpha": float("nan")}, ValueError, "lora_alpha must be a positive number, got nan"),
    "chi, zero": ({"chi": 0}, ValueError, "chi must be at least 1, got 0"),
    "chi, nothing": ({"chi": None}, TypeError, "chi must be a whole number.*got NoneType"),
    "chi, too many": ({"chi": (4, 4)}, ValueError, "chi: 2 sites have 1 bonds, got 2"),
    "chi, too few": ({"chi": (4,), "sites": 3}, ValueError, "chi: 3 sites have 2 bonds, got 1"),
    "sites, one": ({"sites": 1}, ValueError, "sites: a chain has at least two, got 1"),
    "sites, one of them": ({"sites": (24,)}, ValueError, r"sites: a chain has at least two, got \(24,\)"),
    "sites, a word": ({"sites": "even"}, ValueError, "sites.*'balanced', got 'even'"),
    "sites, zero among them": ({"sites": (24, 0)}, ValueError, "sites must be at least 1, got 0"),
    "sites, floats": ({"sites": (4.0, 6.0)}, TypeError, "sites must be a whole number.*got float"),
    "carrier": ({"carrier": "middle"}, ValueError, "carrier must be one of 'auto', 'first', 'last', got 'middle'"),
    "tensorize": ({"tensorize": "C"}, ValueError, "tensorize must be one of 'A', 'B', 'both', got 'C'"),
    "bias": ({"bias": "lora_only"}, ValueError, "bias must be one of 'none', 'all', 'artent_mps_only'"),
    "dropout, one": ({"lora_dropout": 1.0}, ValueError, r"lora_dropout: expected a probability in \[0, 1\), got 1.0"),
    "dropout, a word": ({"lora_dropout": "no"}, TypeError, "lora_dropout must be a number, got str"),
    "rank_pattern, zero": ({"rank_pattern": {"up": 0}}, ValueError, r"rank_pattern\['up'\] must be at least 1, got 0"),
    "alpha_pattern": ({"alpha_pattern": {"up": -1}}, ValueError, r"alpha_pattern\['up'\] must be a positive number"),
    "rank_pattern, a list": ({"rank_pattern": ["up"]}, TypeError, "rank_pattern must be a dict.*got list"),
    "use_rslora": ({"use_rslora": "no"}, TypeError, "use_rslora must be True or False, got 'no'"),
    "init_weights": ({"init_weights": None}, TypeError, "init_weights must be True or False, got None"),
    "target_modules, a number": ({"target_modules": 5}, TypeError, "target_modules must be names.*got 5"),
    "target_modules, numbers": ({"target_modules": [5]}, TypeError, r"target_modules must be names.*got \[5\]"),
    "exclude_modules": ({"exclude_modules": {5}}, TypeError, r"exclude_modules must be names.*got \{5\}"),
    "layers, an expression": (
        {"target_modules": ".*up", "layers_to_transform": [0]},
        ValueError,
        "layers_to_transform: .*'.*up'",
    ),
    "layers, all linear": (  # PEFT resolves it to whole names, which match in every layer
        {"target_modules": "all-linear", "layers_to_transform": [0]},
        ValueError,
        "layers_to_transform: .*'all-linear'",
    ),
    "layers, a word": ({"layers_to_transform": "0"}, TypeError, "layers_to_transform must be a whole number.*got str"),
    "layers_pattern alone": ({"layers_pattern": "h"}, ValueError, "layers_pattern: only with layers_to_transform"),
}


@pytest.mark.parametrize("case", VALUES)
def test_a_value_that_cannot_be_is_named(case):
    options, error, message = VALUES[case]
    with pytest.raises(error, match=message):
        MPSConfig(**options)


class Others(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.conv, self.embedding = nn.Linear(24, 24), nn.Conv2d(3, 4, 2), nn.Embedding(8, 24)
        self.attention, self.norm = nn.MultiheadAttention(24, 2), nn.LayerNorm(24)


MODULES = {
    "conv": (mps(target_modules=["linear", "conv"]), TypeError, "target_modules: conv is a Conv2d.*nn.Linear"),
    "embedding": (mps(target_modules=["linear", "embedding"]), TypeError, "target_modules: embedding is a Embedding"),
    "norm": (mps(target_modules=["linear", "norm"]), TypeError, "target_modules: norm is a LayerNorm"),
    "attention": (mps(target_modules=["linear", "attention"]), TypeError, "attention is a MultiheadAttention"),
    "out_proj": (mps(target_modules=["linear", "out_proj"]), TypeError, r"attention\.out_proj.*no effect"),
    "nothing": (mps(target_modules=["lienar"]), ValueError, "Target modules.*lienar.* not found"),
    "not told": (mps(), ValueError, "specify `target_modules`"),
}


def snapshot(model):
    """Modules, what trains, and all values."""
    values = [value.tolist() for value in model.state_dict().values()]
    return [(name, type(module)) for name, module in model.named_modules()], trainable(model), values


@pytest.mark.parametrize("case", MODULES)
def test_modules_that_take_no_adapter_are_named_and_the_model_is_as_it_was(case):
    config, error, message = MODULES[case]
    model = Others()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        peft.get_peft_model(model, copy.deepcopy(config))
    assert snapshot(model) == before
    assert not hasattr(model, "peft_config")


def test_sites_that_do_not_multiply_name_the_module_and_a_second_attempt_starts_afresh():
    message = r"sites: \(4, 6\) multiply to 24, not to down: its 36 inputs"
    model, x = mlp(), inputs_of(mlp())
    wanted, before = model(x), snapshot(model)
    with pytest.raises(ValueError, match=message):
        peft.get_peft_model(model, on_mlp(sites=(4, 6)))
    assert snapshot(model) == before
    tuned = peft.get_peft_model(model, mps(target_modules=["down"], chi=2))
    assert set(layers(tuned)) == {"down"}
    state = snapshot(tuned)
    with pytest.raises(ValueError, match=message):
        tuned.add_adapter("other", on_mlp(sites=(4, 6)))
    assert snapshot(tuned) == state
    assert list(tuned.peft_config) == ["default"]
    tuned.add_adapter("other", on_mlp(sites=2))
    assert torch.equal(tuned(x), wanted)
    with pytest.raises(ValueError, match=r"not to up: its 36 outputs"):
        peft.get_peft_model(mlp(), mps(target_modules=["up"], sites=(4, 6), tensorize="both"))


def test_a_bond_that_cannot_be_filled_is_lowered_and_told():
    with pytest.warns(UserWarning, match=r"chi: 32 is more than sites \(4, 6\) with r = 4 can hold; 6 is used"):
        model = peft.get_peft_model(mlp(), mps(chi=32, target_modules=["up"]))
    assert layers(model)["up"].artent_mps_A["default"].core_0.shape == (4, 4, 6)
    with pytest.warns(UserWarning, match=r"chi: \(3, 9\) .*sites \(2, 3, 4\).*; \(3, 4\) is used"):
        peft.get_peft_model(mlp(), mps(chi=(3, 9), sites=3, target_modules=["up"]))


def test_a_merge_refused_for_one_layer_changes_none():
    """The last layer is the bad one: those before it stay as they are."""
    model, x, before = adapted("two sites")
    with torch.no_grad():
        layers(model)["down"].artent_mps_B["default"].weight[0] = float("inf")
    original = copy.deepcopy(model.state_dict())
    for way in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="NaN or Inf"):
            way(safe_merge=True)
        assert not any(layer.merged for layer in layers(model).values())
        assert set(layers(model)) == {"up", "down"}
        assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    with model.disable_adapter():
        assert torch.equal(logits(model, x), before(x))


def test_layers_out_of_range_are_told():
    with pytest.raises(ValueError, match=r"layers_to_transform.*7"):
        peft.get_peft_model(llama(), mps(chi=2, layers_to_transform=[7]))


# What an older or a newer PEFT might lack or want, and what is told of it.
BROKEN = {
    "no register_peft_method": ("del peft.utils.register_peft_method", "register_peft_method"),
    "no hotswap": ("sys.modules['peft.utils.hotswap'] = None", "hotswap"),
    "types of another kind": (
        "import enum; peft.utils.PeftType = enum.Enum('PeftType', {'LORA': 1})",
        "TypeError",
    ),
    "registration refuses": ("peft.utils.register_peft_method = lambda name, **_: {}[name]", "KeyError: 'artent_mps'"),
    "a name that the layers need is gone": (
        "import peft.tuners.tuners_utils as t; del t.onload_layer",
        "onload_layer",
    ),
    "a method has to define more": (
        "import abc; from peft.tuners.tuners_utils import BaseTuner as B; B.more = abc.abstractmethod(lambda self: 0);"
        "B.__abstractmethods__ |= {'more'}",
        "more",
    ),
}
CHILD = """
import os, sys, traceback, warnings
import peft, torch
folder, breaks = sys.argv[1], eval(sys.argv[2])
for name, code in breaks.items():
    if os.fork():
        continue
    told = []
    exec(code)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import artent
        told += [str(warning.message) for warning in caught]
    try:
        from artent import MPSConfig
    except ImportError as error:
        told.append(str(error))
    import peft
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2))
    told.append(type(peft.get_peft_model(layer, peft.LoraConfig(target_modules=["0"]))).__name__)
    open(f"{folder}/{name}", "w").write("\\n".join(told))
    os._exit(0)
for _ in breaks:
    os.wait()
"""


def test_a_peft_that_does_not_take_the_method_works_on_and_the_versions_that_do_are_named(tmp_path):
    breaks = {name: code for name, (code, _) in BROKEN.items()}
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), repr(breaks)], check=True)
    for name, (_, reason) in BROKEN.items():
        warned, raised, still_works = (tmp_path / name).read_text().splitlines()
        assert warned == raised
        assert re.search(rf"cannot register with peft {re.escape(peft.__version__)} .*{reason}.*0\.18\.0 to", raised)
        assert still_works == "PeftModel"


def test_without_peft_the_configuration_says_what_to_install():
    code = "import sys; sys.modules['peft'] = None; import artent; artent.MPSConfig"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 1
    assert "artent[peft]" in shown.stderr.splitlines()[-1]
