"""What is saved and how it comes back: folders, new processes, pickles, state dicts, swaps while running."""

import copy
import io
import json
import pickle
import subprocess
import sys
import warnings

import peft
import pytest
import torch
from artent import MPSConfig
from mps_models import CASES, TOKENS, adapted, config_of, layers, llama, logits, on_mlp, shake, trainable
from peft import PeftConfig, PeftModel
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

PEFT = tuple(int(part) for part in peft.__version__.split(".")[:2])
KEEPS_ADAPTERS_APART = PEFT >= (
    0,
    20,
)  # an older one saves every method's adapters into each one's file, LoRA's excepted
FOR_TRANSFORMERS = PEFT >= (0, 20)  # transformers' own loader takes no older one

every_case = pytest.mark.parametrize("case", CASES)


def loaded(case, folder, **options):
    """The case's base model with the adapter of ``folder``; PEFT must miss nothing in it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        return PeftModel.from_pretrained(CASES[case][0](), folder, **options).eval()


@every_case
def test_a_folder_holds_the_adapter_alone_and_brings_it_back(case, tmp_path):
    model, inputs, _ = adapted(case)
    wanted = logits(model, inputs)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    kept = {name.replace(".default", "").replace(".modules_to_save", "") for name in trainable(model)}
    assert set(saved) == kept
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["inference_mode"]) == ("ARTENT_MPS", True)

    again = loaded(case, tmp_path)
    assert torch.equal(logits(again, inputs), wanted)
    assert not trainable(again)
    assert trainable(loaded(case, tmp_path, is_trainable=True)) == trainable(model)
    lean = loaded(case, tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(lean, inputs), wanted)
    assert {p.device.type for p in lean.parameters()} == {"cpu"}
    again.load_adapter(tmp_path, "other")
    again.set_adapter("other")
    assert torch.equal(logits(again, inputs), wanted)


@every_case
def test_a_configuration_is_the_same_after_json_pickle_and_copy(case, tmp_path):
    config = config_of(case)
    config.save_pretrained(tmp_path)
    again = PeftConfig.from_pretrained(tmp_path)
    assert type(again) is MPSConfig
    assert again == MPSConfig.from_pretrained(tmp_path) == config
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert peft.get_peft_config(config.to_dict()) == config
    assert (type(again.chi), type(again.sites)) == (type(config.chi), type(config.sites))


def test_saved_names_are_those_of_the_cores(tmp_path):
    adapted("A and B")[0].save_pretrained(tmp_path)
    names = {f"base_model.model.{m}.artent_mps_{f}.core_{k}" for m in ("up", "down") for f in "AB" for k in (0, 1)}
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == names
    model, _, _ = adapted("three sites")
    names = {f"base_model.model.up.artent_mps_A.core_{k}" for k in range(3)} | {
        "base_model.model.up.artent_mps_B.weight"
    }
    assert {name for name in peft.get_peft_model_state_dict(model) if ".up." in name} == names


def test_names_within_names_stay_apart(tmp_path):
    """Adapters whose names are parts of one another's, or of a parameter's."""
    model, x, _ = adapted("three sites")
    names = ["default2", "other_default", "foodefault_bar", "efaul", "core"]
    outputs = {"default": model(x)}
    for seed, name in enumerate(names, 10):
        model.add_adapter(name, on_mlp(sites=3, chi=(2, 3)))
        model.set_adapter(name)
        outputs[name] = shake(model, seed)(x)
    model.save_pretrained(tmp_path)
    for name, wanted in outputs.items():
        folder = tmp_path / name if name != "default" else tmp_path
        if KEEPS_ADAPTERS_APART:
            assert len(load_file(folder / "adapter_model.safetensors")) == 8
        assert torch.equal(loaded("three sites", folder, adapter_name=name)(x), wanted)


@every_case
def test_copies_and_pickles_are_models_of_their_own(case):
    model, inputs, _ = adapted(case)
    wanted, file = logits(model, inputs), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)
    shake(model, 9)
    assert not torch.equal(logits(model, inputs), wanted)
    for other in copies:
        assert torch.equal(logits(other, inputs), wanted)
        assert trainable(other) == trainable(model)


def test_a_state_dict_holds_the_adapter_alone_and_is_taken_back():
    model, x, before = adapted("four sites, r at the last")
    weights = peft.get_peft_model_state_dict(model)
    other = peft.get_peft_model(copy.deepcopy(before), config_of("four sites, r at the last"), "mine").eval()
    assert not peft.set_peft_model_state_dict(other, weights, adapter_name="mine").unexpected_keys
    assert torch.equal(other(x), model(x))
    bare = peft.inject_adapter_in_model(config_of("four sites, r at the last"), copy.deepcopy(before)).eval()
    assert torch.equal(bare(x), before(x))
    found = peft.get_peft_model_state_dict(bare)
    assert {f"base_model.model.{name}" for name in found} == set(weights)
    peft.set_peft_model_state_dict(bare, {name.removeprefix("base_model.model."): w for name, w in weights.items()})
    assert torch.equal(bare(x), model(x))
    named = peft.inject_adapter_in_model(on_mlp(), copy.deepcopy(before), state_dict={"up.artent_mps_A.core_0": None})
    assert set(layers(named)) == {"up"}  # the modules that a state dict names, where one is given
    wrong = {name: w[..., :1] for name, w in weights.items()}
    with pytest.raises(RuntimeError, match=r"size mismatch for .*core_0"):
        peft.set_peft_model_state_dict(other, wrong, adapter_name="mine")


def two_folders(tmp_path, first=None, second=None):
    """Two trained adapters of the same shape, but for the options; (the first's model, the second's, its folder)."""
    models = []
    for seed, options in ((3, first or {}), (4, second or {})):
        base, _, _ = adapted("two sites", shaken=False, **options)
        models.append(shake(base, seed))
    models[1].save_pretrained(tmp_path)
    return (*models, tmp_path)


def test_a_loaded_adapter_is_replaced_in_place(tmp_path):
    x = adapted("two sites")[1]
    model, new, folder = two_folders(tmp_path)
    assert not torch.equal(model(x), new(x))
    model.load_adapter(folder, "default")
    assert torch.equal(model(x), new(x))
    for options in ({}, {"lora_alpha": 11}):  # its own scaling comes with it
        model, new, folder = two_folders(tmp_path, second=options)
        parameters = dict(model.named_parameters())
        hotswap_adapter(model, folder, "default")
        assert torch.equal(model(x), new(x))
        assert dict(model.named_parameters()).keys() == parameters.keys()


REFUSED = {
    "chi": ({}, {"chi": 2}, "chi, 3 != 2"),
    "chi, one for each": ({}, {"chi": (2,)}, "chi"),
    "sites": ({}, {"sites": 3}, "sites, balanced != 3"),
    "carrier": ({}, {"carrier": "last"}, "carrier"),
    "side": ({}, {"tensorize": "B"}, "tensorize"),
    "rank": ({}, {"r": 2}, "r, 4 != 2"),
    "rsLoRA": ({}, {"use_rslora": True}, "use_rslora"),
    "a rank of its own": ({"rank_pattern": {"up": 2}}, {"rank_pattern": {"up": 2}}, "rank_pattern.*load_adapter"),
    "an alpha of its own": ({"alpha_pattern": {"up": 2}}, {"alpha_pattern": {"up": 2}}, "alpha_pattern.*load_adapter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_swapped_is_refused_before_anything_changes(case, tmp_path):
    """PEFT itself would take α/r without the patterns for the scaling of a swapped adapter."""
    first, second, message = REFUSED[case]
    model, _, folder = two_folders(tmp_path, first, second)
    x = adapted("two sites")[1]
    wanted = model(x)
    with pytest.raises(ValueError, match=message):
        hotswap_adapter(model, folder, "default")
    assert torch.equal(model(x), wanted)


ORDERS = {
    "artent first": "import artent; from peft import PeftModel",
    "peft first": "from peft import PeftModel; import artent",
    "the configuration first": "from artent import MPSConfig; from peft import PeftModel",
    "transformers' own loader": "import artent",
    "no artent": "from peft import PeftModel",
}
# One process imports what takes long, and then a copy of it for every order of the rest.
CHILD = """
import os, sys, traceback
import torch
from transformers.models.llama import LlamaForCausalLM
folder, tokens, orders = sys.argv[1], *map(eval, sys.argv[2:])
assert not {"artent", "peft"} & sys.modules.keys()
for name, imports in orders.items():
    if os.fork():
        continue
    try:
        exec(imports)
        model = LlamaForCausalLM.from_pretrained(folder + "/base")
        if "PeftModel" in globals():
            model = PeftModel.from_pretrained(model, folder + "/adapter")
        else:
            model.load_adapter(folder + "/adapter")
        torch.save(model.eval()(torch.tensor(tokens)).logits, f"{folder}/{name}.pt")
    except Exception:
        open(f"{folder}/{name}.error", "w").write(traceback.format_exc())
    os._exit(0)
for _ in orders:
    os.wait()
"""


def test_a_new_process_loads_what_was_saved_and_without_artent_is_told_what_is_missing(tmp_path):
    model, tokens, before = adapted("llama, all linear")
    before.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    orders = {name: code for name, code in ORDERS.items() if FOR_TRANSFORMERS or "transformers" not in name}
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), str(TOKENS.tolist()), str(orders)], check=True)
    errors = {path.stem: path.read_text().splitlines()[-1] for path in tmp_path.glob("*.error")}
    assert errors == {"no artent": "KeyError: 'ARTENT_MPS'"}
    outputs = {path.stem: torch.load(path) for path in tmp_path.glob("*.pt")}
    assert len(outputs) == len(orders) - 1
    for found in outputs.values():
        torch.testing.assert_close(found, logits(model, tokens), rtol=0, atol=1e-6)


@pytest.mark.skipif(not FOR_TRANSFORMERS, reason="transformers' own loader takes no peft before 0.20")
def test_transformers_own_methods_add_save_load_and_switch(tmp_path):
    base = llama()
    base.save_pretrained(tmp_path / "base")
    base.add_adapter(config_of("llama, usual targets"), adapter_name="default")
    wanted = shake(base)(TOKENS).logits
    assert {name.split(".")[-2] for name in trainable(base)} == {"default"}
    base.save_pretrained(tmp_path / "adapter")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    original = other(TOKENS).logits
    other.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(other(TOKENS).logits, wanted)
    other.disable_adapters()
    assert torch.equal(other(TOKENS).logits, original)
    other.enable_adapters()
    assert other.active_adapters() == ["default"]
    other.add_adapter(config_of("llama, usual targets"), adapter_name="second")
    other.set_adapter("second")
    assert torch.equal(other(TOKENS).logits, original)
    other.delete_adapter("second")
    both = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(both(TOKENS).logits, wanted)
    both.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    both.save_pretrained(tmp_path / "named")
    for cls in (AutoModelForCausalLM, peft.AutoPeftModel):  # both read the base model's name from the adapter's folder
        assert torch.equal(cls.from_pretrained(str(tmp_path / "named"))(TOKENS).logits[..., :48], wanted)
