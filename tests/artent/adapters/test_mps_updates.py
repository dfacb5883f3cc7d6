"""What artent reads of MPS adapters, live and saved: updates, profiles, records."""

import copy
import json
import subprocess
import sys
import warnings

import peft
import pytest
import torch
from artent import EntanglementRecorder, LoRAUpdate, MPSConfig, MPSUpdate, entanglement_profile, weight_updates
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

QV = ["q_proj", "v_proj"]
Q0 = "model.layers.0.self_attn.q_proj"


def llama():
    shape = {"vocab_size": 48, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2)).double().eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=24, n_layer=1, n_head=2, n_positions=16)).double().eval()


def mps(**options):
    return MPSConfig(**{"r": 4, "lora_alpha": 6, "chi": 3, "target_modules": QV} | options)


def adapted(config, build=llama):
    model = peft.get_peft_model(build(), config).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # random weights where training would write some
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.eval()


@torch.no_grad()
def acted(model, name):
    """ΔW as the model acts: the layer on every unit vector, with its adapters and without."""
    layer = model.get_base_model().get_submodule(name)
    vectors = torch.eye(layer.in_features, dtype=torch.float64)
    with_it = layer(vectors)
    return (with_it - layer.get_base_layer()(vectors)).T


CASES = {
    "A": (llama, mps()),
    "B": (llama, mps(tensorize="B")),
    "both, three sites, r last": (llama, mps(tensorize="both", sites=3, carrier="last", chi=(2, 3))),
    "four sites, r first": (llama, mps(sites=(2, 3, 2, 2), carrier="first", chi=(3, 3, 2))),
    "rsLoRA": (llama, mps(use_rslora=True)),
    "patterns": (llama, mps(rank_pattern={"v_proj": 2}, alpha_pattern={r"layers\.1\..*q_proj": 9, "v_proj": 5})),
    "Conv1D": (gpt2, mps(target_modules=["c_attn", "c_fc"], tensorize="both")),
    "modules_to_save": (gpt2, mps(target_modules=["c_attn"], modules_to_save=["lm_head"])),
}


@pytest.mark.parametrize("case", CASES)
def test_an_update_is_what_the_layer_does_live_and_from_its_folder(case, tmp_path):
    build, config = CASES[case]
    model = adapted(copy.deepcopy(config), build)
    original = build().state_dict()
    live = dict(weight_updates(model))
    whole = {"lm_head"} if case == "modules_to_save" else set()
    assert {name.rpartition(".")[2] for name in live} - whole == set(config.target_modules)
    model.save_pretrained(tmp_path)
    saved = dict(weight_updates(tmp_path, original))
    assert set(saved) == set(live)
    assert set(dict(weight_updates(str(tmp_path)))) == set(live) - whole
    for name in set(live) - whole:
        update, expected = live[name], acted(model, name)
        assert isinstance(update, MPSUpdate)
        assert (update.dense() - expected).norm() < 1e-13 * expected.norm(), name
        layer = model.get_base_model().get_submodule(name)
        cores = layer.artent_mps_A["default"].cores
        assert all(a is b for a, b in zip(cores, [update.A] if len(cores) == 1 else update.A, strict=True))
        assert torch.equal(saved[name].dense(), update.dense())
        assert (saved[name].chains, saved[name].scaling) == (update.chains, update.scaling)
    for name in whole:
        torch.testing.assert_close(saved[name], live[name], rtol=0, atol=0)


def test_several_active_adapters_add_up():
    model = peft.get_peft_model(llama(), mps())
    model.add_adapter("second", mps(r=3, target_modules=["q_proj"], tensorize="both", carrier="last"))
    model.base_model.set_adapter(["default", "second"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter) * parameter.requires_grad
    updates = dict(weight_updates(model.double()))
    for name, kind in ((Q0, LoRAUpdate), (Q0.replace("q_proj", "v_proj"), MPSUpdate)):
        assert isinstance(updates[name], kind)
        assert torch.allclose(updates[name].dense(), acted(model, name), rtol=0, atol=1e-12)
    entanglement_profile(updates[Q0]).entropy.sum().backward()
    layer = model.get_base_model().get_submodule(Q0)
    for adapter in ("default", "second"):
        assert all(p.grad.norm() > 0 for p in [*layer.artent_mps_A[adapter].cores, *layer.artent_mps_B[adapter].cores])
    with torch.no_grad():
        exact = dict(weight_updates(model.bfloat16().double()))[Q0].dense()
        joined = dict(weight_updates(model.bfloat16()))[Q0]
    assert joined.A.dtype == joined.B.dtype == torch.float32  # a sum is not rounded to the cores' dtype
    assert (joined.dense() - exact).norm() <= 1e-6 * exact.norm()
    model.set_adapter("second")
    assert sorted(dict(weight_updates(model))) == [Q0, Q0.replace(".0.", ".1.")]


@pytest.mark.parametrize("tensorize", ["A", "B", "both"])
def test_a_profile_of_live_cores_can_be_a_loss_term(tensorize):
    model = adapted(mps(tensorize=tensorize))
    sum(p.entropy.sum() for p in entanglement_profile([u for _, u in weight_updates(model)])).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 4 * (4 if tensorize == "both" else 3)
    assert all(p.grad is not None and p.grad.norm() > 0 for p in trained)


@pytest.mark.parametrize("tensorize", ["A", "B", "both"])
def test_before_the_first_step_there_is_no_update(tensorize):
    model = peft.get_peft_model(llama(), mps(tensorize=tensorize))
    with pytest.warns(UserWarning, match="4 weights did not change.*training has not begun"):
        assert dict(weight_updates(model)) == {}
    factor = model.get_base_model().get_submodule(Q0).artent_mps_B["default"]
    with torch.no_grad():
        factor.cores[factor.shape.carrier_index].add_(1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(dict(weight_updates(model))) == [Q0]


def test_a_folder_is_read_without_peft(tmp_path):
    adapted(mps(tensorize="both")).save_pretrained(tmp_path)
    code = (
        "import sys, artent\n"
        f"names = sorted(name for name, _ in artent.weight_updates({str(tmp_path)!r}))\n"
        "print(len(names), names[0], 'peft' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4", Q0, "False", "False"]


def _file(folder):
    return folder / "adapter_model.safetensors"


def _tensors(folder, change):
    tensors = load_file(_file(folder))
    change(tensors, f"base_model.model.{Q0}.artent_mps_")
    save_file(tensors, _file(folder))


def _config(folder, change):
    config = json.loads((folder / "adapter_config.json").read_text())
    change(config)
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _no_factors(tensors, _):
    kept = {key.replace("artent_mps_", "other_"): tensor for key, tensor in tensors.items()}
    tensors.clear()
    tensors.update(kept)


DAMAGED = {
    "a core missing": (lambda p: _tensors(p, lambda t, q: t.pop(q + "A.core_1")), f"{Q0}: core_1 is missing"),
    "an end missing": (lambda p: _tensors(p, lambda t, q: t.pop(q + "A.core_2")), "cores must be shaped"),
    "no B": (lambda p: _tensors(p, lambda t, q: t.pop(q + "B.weight")), "has one factor"),
    "a bond": (
        lambda p: _tensors(p, lambda t, q: t.update({q + "A.core_1": torch.ones(2, 3, 3)})),
        "A: bond 2 does not match",
    ),
    "the rank": (
        lambda p: _tensors(p, lambda t, q: t.update({q + "B.weight": torch.ones(24, 5)})),
        "ranks do not match",
    ),
    "no factors": (lambda p: _tensors(p, _no_factors), "none of its 16 tensors is a factor of ARTENT_MPS"),
    "cut short": (lambda p: _file(p).write_bytes(_file(p).read_bytes()[:200]), "safetensors cannot be read"),
    "no tensors": (lambda p: _file(p).unlink(), "folder that holds some"),
    "configuration cut short": (lambda p: (p / "adapter_config.json").write_text('{"r": '), "is not JSON"),
    "no alpha": (lambda p: _config(p, lambda c: c.pop("lora_alpha")), "no lora_alpha"),
    "another method": (lambda p: _config(p, lambda c: c.update(peft_type="SOMETHING")), "peft_type='SOMETHING'"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_folders_are_told(case, tmp_path):
    damage, message = DAMAGED[case]
    adapted(mps(sites=3, chi=2)).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        list(weight_updates(tmp_path))


def test_a_recorder_measures_mps_adapters_and_leaves_them_as_they_were():
    model = adapted(mps())
    before = copy.deepcopy(model.state_dict())
    recorder = EntanglementRecorder(model, every=2)
    records = recorder.step(0)
    assert not recorder.step(1)
    profiles = {record["module"]: record for record in records}
    assert sorted(profiles) == sorted(dict(weight_updates(model)))
    for name, record in profiles.items():
        expected = entanglement_profile(acted(model, name))
        torch.testing.assert_close(torch.tensor(record["entropy"]).double(), expected.entropy, rtol=0, atol=1e-6)
        assert record["rank"] == 4
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
