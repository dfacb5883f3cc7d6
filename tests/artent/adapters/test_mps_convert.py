"""LoRA adapters to MPS and back: what PEFT loads does what was converted; what cannot be converted is told."""

import copy
import json
import math
import warnings

import artent
import peft
import pytest
import torch
from artent import LoRAUpdate, MPSConfig, weight_updates
from artent.adapters.mps.peft_shim import SAVES_BIAS
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

UPDATE = LoRAUpdate(torch.ones(30, 5), torch.ones(5, 48))


def product(update):
    B, A = update.factors(torch.float64)
    return B @ A


def llama():
    shape = {"vocab_size": 48, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True}
    return LlamaForCausalLM(LlamaConfig(**shape, **heads)).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=24, n_layer=2, n_head=2, n_positions=16)).eval()


def lora(**options):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | options)


def adapted(config, build=llama, seed=1):
    model = peft.get_peft_model(build(), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.arange(12).reshape(2, 6)).logits


PATTERNS = {"rank_pattern": {"v_proj": 2, r".*\.1\..*q_proj": 7}, "alpha_pattern": {"layers.0.self_attn.q_proj": 9}}
ADAPTERS = {
    "plain": (llama, {}, {}),
    "rsLoRA and patterns": (llama, {"use_rslora": True, **PATTERNS}, {"tensorize": "both"}),
    "MLP, three sites": (llama, {"target_modules": "all-linear"}, {"sites": 3, "carrier": "last"}),
    "biases": (llama, {"bias": "all"}, {"tensorize": "B"}),
    "the layers' own biases": (llama, {"bias": "lora_only"}, {}),
    "some layers": (llama, {"layers_to_transform": [1], "layers_pattern": "layers"}, {}),
    "Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, {"sites": 4}),
    "modules_to_save": (llama, {"modules_to_save": ["lm_head"]}, {}),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_peft_loads_what_was_converted_and_converted_back(case, tmp_path):
    build, options, chain = ADAPTERS[case]
    model = adapted(lora(**options), build)
    if "bias" in options and not SAVES_BIAS:
        with pytest.raises(ValueError, match=r"needs peft ≥ 0\.21"):
            artent.from_lora(model)
        return
    expected = logits(model)
    assert (expected - logits(build())).abs().max() > 0.1
    model.save_pretrained(tmp_path / "lora")
    converted = artent.from_lora(tmp_path / "lora", **chain)
    live = artent.from_lora(model, **chain)
    assert converted.errors == live.errors
    assert all(torch.equal(live.state_dict[key], tensor) for key, tensor in converted.state_dict.items())
    assert sorted(converted.errors) == sorted(set(dict(weight_updates(model))) - {"lm_head"})
    assert max(converted.errors.values()) < 1e-6
    converted.save(tmp_path / "mps")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="chi: ")  # what is loaded to be used lowers bonds in silence
        loaded = peft.PeftModel.from_pretrained(build(), tmp_path / "mps").eval()
    assert isinstance(loaded.peft_config["default"], MPSConfig)
    assert loaded.peft_config["default"].base_model_name_or_path == model.peft_config["default"].base_model_name_or_path
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    saved = set(artent.reading.adapter_files.read_folder(tmp_path / "again").tensors)
    assert saved == set(converted.state_dict)  # PEFT took every tensor, and none was missing
    for back in (artent.to_lora(loaded), artent.to_lora(tmp_path / "mps")):
        assert max(back.errors.values()) < 1e-6
        back.save(tmp_path / "back")
        config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
        first = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
        same = set(first) - {"fan_in_fan_out", "target_modules", "inference_mode"}
        assert {key: config[key] for key in same} == {key: first[key] for key in same}
        returned = peft.PeftModel.from_pretrained(build(), tmp_path / "back").eval()
        torch.testing.assert_close(logits(returned), expected, rtol=1e-5, atol=1e-5)
    assert artent.to_lora(loaded).config.fan_in_fan_out == (build is gpt2)


@pytest.mark.parametrize("tensorize", ["A", "both"])
@pytest.mark.parametrize("sites", [2, 3])
def test_one_chi_for_all_modules_keeps_every_one_within_tol(sites, tensorize, tmp_path):
    model = adapted(lora(rank_pattern={"v_proj": 2}, target_modules=["q_proj", "v_proj", "o_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:  # the layers need different bonds
                decay = (0.5 if "layers.1" in name else 0.7) ** (torch.arange(max(parameter.shape)) % 6)
                parameter *= decay if "lora_A" in name else decay[:, None]
    chain = {"sites": sites, "tensorize": tensorize, "carrier": "first"}
    converted = artent.from_lora(model, tol=0.2, **chain)
    assert 0.05 < max(converted.errors.values()) <= 0.2
    converted.save(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="chi: ")
        loaded = dict(weight_updates(peft.PeftModel.from_pretrained(llama(), tmp_path)))
    for name, given in weight_updates(model):
        delta = product(given)
        error = (product(loaded[name]) - delta).norm() / delta.norm()
        assert converted.errors[name] == pytest.approx(error.item(), rel=1e-5)
    if (sites, tensorize) == (2, "A"):  # where truncation is the best there is, so is the one bond for all
        assert max(artent.from_lora(model, chi=converted.config.chi - 1, **chain).errors.values()) > 0.2
        capped = artent.from_lora(model, tol=0.2, chi=2, **chain)
        assert capped.config.chi == 2


def _folder(tmp_path, config, build=llama):
    adapted(config, build).save_pretrained(tmp_path)
    return tmp_path


def _convolution():
    return torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3))


def _nan():
    model = adapted(lora())
    with torch.no_grad():
        model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").lora_A["default"].weight[0, 0] = (
            math.nan
        )
    return model


FROM = {
    "DoRA": (lambda p: _folder(p, lora(use_dora=True)), {}, ValueError, "use_dora=True.*merge this adapter"),
    "PiSSA": (lambda _: adapted(lora(init_lora_weights="pissa")), {}, ValueError, "'pissa'.*path_initial_model"),
    "embedding": (lambda _: adapted(lora(target_modules=["embed_tokens"])), {}, ValueError, "belongs to an embedding"),
    "convolution": (
        lambda _: adapted(peft.LoraConfig(r=2, target_modules=["0"]), _convolution),
        {},
        ValueError,
        "expected a matrix.*layer that is not linear",
    ),
    "biases of B": (lambda _: adapted(lora(lora_bias=True)), {}, ValueError, "lora_bias=True has no counterpart"),
    "tokens": (lambda _: adapted(lora(trainable_token_indices=[1])), {}, ValueError, "trainable_token_indices"),
    "LoHa": (
        lambda p: _folder(p, peft.LoHaConfig(r=2, target_modules=["q_proj"])),
        {},
        ValueError,
        "peft_type='LOHA'.*Only plain LoRA",
    ),
    "MPS": (
        lambda _: adapted(MPSConfig(chi=2, target_modules=["q_proj"])),
        {},
        ValueError,
        "expected an adapter of type LORA, got ARTENT_MPS",
    ),
    "NaN": (lambda _: _nan(), {}, ValueError, r"layers\.0\.self_attn\.q_proj\.A: holds NaN"),
    "no such folder": (lambda p: p / "none", {}, FileNotFoundError, "names on the hub are not fetched"),
    "another name": (lambda _: adapted(lora()), {"adapter_name": "other"}, ValueError, "'other', it has 'default'"),
    "no adapter": (lambda _: llama(), {}, ValueError, "has no PEFT adapters"),
    "a matrix": (lambda _: torch.ones(2, 2), {}, TypeError, "artent.LoRAUpdate, got Tensor"),
    "tol": (lambda _: UPDATE, {"tol": 1.5}, ValueError, "tol: expected a relative error between 0 and 1, got 1.5"),
    "tol zero": (lambda _: UPDATE, {"tol": 0}, ValueError, "tol"),
    "chi": (lambda _: UPDATE, {"chi": 0}, ValueError, "chi must be at least 1, got 0"),
    "bonds": (lambda _: UPDATE, {"chi": (3, 3)}, ValueError, "chi: 2 sites have 1 bond"),
    "sites": (lambda _: UPDATE, {"sites": (5, 7)}, ValueError, "sites: .* multiply to 35"),
    "carrier": (lambda _: UPDATE, {"carrier": "middle"}, ValueError, "carrier"),
}


@pytest.mark.parametrize("case", FROM)
def test_what_cannot_be_converted_is_told(case, tmp_path):
    build, options, error, message = FROM[case]
    with pytest.raises(error, match=message):
        artent.from_lora(build(tmp_path), **options)


def test_what_is_not_mps_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"peft_type='LOHA'\)\. Only MPS adapters can be converted back"):
        artent.to_lora(_folder(tmp_path / "loha", peft.LoHaConfig(r=2, target_modules=["q_proj"])))
    folder = _folder(tmp_path / "later", MPSConfig(chi=2, target_modules=["q_proj"]))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"gates": "learnt"}))
    with pytest.raises(ValueError, match="gates='learnt' has no counterpart in LoRA: saved by a later artent"):
        artent.to_lora(folder)
    with pytest.raises(ValueError, match="expected an adapter of type ARTENT_MPS, got LORA"):
        artent.to_lora(adapted(lora()))
    with pytest.raises(TypeError, match=r"artent\.MPSUpdate, got LoRAUpdate"):
        artent.to_lora(UPDATE)


def test_a_conversion_shares_nothing_with_the_live_model():
    model = adapted(lora(modules_to_save=["lm_head"]))
    converted = artent.from_lora(model)
    before = copy.deepcopy(converted.state_dict)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(before[key], tensor) for key, tensor in converted.state_dict.items())
