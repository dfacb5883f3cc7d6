"""Controls against models made another way: flipped factors, mirrored weights, singular values in float64."""

import copy

import artent
import peft
import pytest
import torch
from artent.study import controls
from artent.study.config import MeasureConfig
from artent.study.controls import KINDS, apply_control, control_records, control_update
from safetensors.torch import load_file
from torch.func import functional_call
from tuned_models import gpt2, llama, lora, train

IDS = torch.randint(1, 48, (2, 16), generator=torch.Generator().manual_seed(1))


def dense(update):
    return (update if isinstance(update, torch.Tensor) else update.dense()).double()


def updates():
    generator = torch.Generator().manual_seed(0)

    def gaussian(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    cores = [gaussian(4, 3), gaussian(3, 5, 6)]
    return {
        "dense": gaussian(12, 20).float(),
        "tall": gaussian(20, 12),
        "lora": artent.LoRAUpdate(gaussian(12, 6), gaussian(6, 20), 0.5),
        "bfloat16": artent.LoRAUpdate(gaussian(12, 6).bfloat16(), gaussian(6, 20).bfloat16(), 2.0),
        "mps": artent.MPSUpdate(gaussian(12, 6), cores, -0.3),
    }


@pytest.mark.parametrize("name", updates())
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_control_keeps_of_its_update(name, kind):
    update = updates()[name]
    state = torch.random.get_rng_state()
    made = control_update(update, kind, "q_proj", 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    W, control = dense(update), dense(made)
    if name == "bfloat16":  # its product, before bfloat16 rounds it
        W = 2.0 * update.B.double() @ update.A.double()
    sigma, own = torch.linalg.svdvals(W), torch.linalg.svdvals(control)
    assert control.norm().item() == pytest.approx(W.norm().item(), rel=1e-6)
    if kind == "random":
        assert torch.linalg.matrix_rank(control) == min(control.shape)
    else:
        torch.testing.assert_close(own, sigma, rtol=0, atol=1e-6 * sigma[0].item())
    if kind == "negated":
        torch.testing.assert_close(control, -W, rtol=0, atol=1e-6 * W.abs().max().item())
        assert torch.equal(dense(control_update(made, kind, "q_proj", 0)), -control)
    else:
        assert torch.equal(dense(control_update(update, kind, "q_proj", 0)), control)
        for other in (("v_proj", 0), ("q_proj", 1)):
            # Independent directions: a cosine of some 1/√240.
            cosine = (dense(control_update(update, kind, *other)) * control).sum() / control.norm() ** 2
            assert cosine.abs() < 0.3
        assert ((W * control).sum() / W.norm() ** 2).abs() < 0.3


@torch.no_grad()
def test_haar_vectors_are_uniform():
    # Of a rank-one update u vᵀ: E[(uᵢ vⱼ)²] = 1/(mn), and the signs are free.
    update = artent.LoRAUpdate(torch.eye(3)[:, :1], torch.eye(4)[:1])
    draws = torch.stack([dense(control_update(update, "haar", "q_proj", seed)) for seed in range(4000)])
    assert (draws.square().mean(0) * 12 - 1).abs().max() < 0.15  # five standard errors of (uᵢ vⱼ)²
    assert (draws.mean(0) * 12**0.5).abs().max() < 5 / 4000**0.5


def adapted(make):
    """(base, tuned): an adapter on a copy of the base."""
    base = make()
    config = lora(target_modules=["c_attn"], fan_in_fan_out=True) if make is gpt2 else lora()
    return base, train(peft.get_peft_model(copy.deepcopy(base), config))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("make", [llama, gpt2])  # Linear stores out × in, Conv1D in × out
def test_negated_is_the_adapter_with_its_sign_turned(make):
    base, tuned = adapted(make)
    before, logits = state(base), base(IDS).logits
    written = dict(artent.weight_updates(tuned))
    found = {}
    for kind in KINDS:
        with apply_control(base, written, kind, seed=0):
            found[kind] = base(IDS).logits
        assert same(base, before)
    learnt = (tuned(IDS).logits - logits).norm()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.neg_()
    torch.testing.assert_close(found["negated"], tuned(IDS).logits, atol=1e-5, rtol=0)
    assert all((control - logits).norm() > 0.1 * learnt for control in found.values())
    assert torch.equal(base(IDS).logits, logits)


@torch.no_grad()
def test_negated_full_fine_tuning_mirrors_the_weights():
    base, tuned = llama(), train(llama(), 0.05)
    targets, after = ["q_proj", "down_proj"], tuned.state_dict()
    mirrored = {k: 2 * W - after[k] for k, W in base.state_dict().items() if any(f".{t}." in k for t in targets)}
    want = functional_call(base, mirrored, (IDS,)).logits
    before = state(base)
    with apply_control(base, artent.weight_updates(tuned, base.state_dict(), targets=targets), "negated", seed=0):
        torch.testing.assert_close(base(IDS).logits, want)
    assert same(base, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_rounded_once_and_put_back(dtype):
    _, tuned = adapted(llama)
    base = llama().to(dtype)
    before, written = state(base), dict(artent.weight_updates(tuned))
    with apply_control(base, written, "haar", seed=3) as rounding:
        for name, update in written.items():
            W, delta = before[f"{name}.weight"], dense(control_update(update, "haar", name, 3))
            now = base.get_submodule(name).weight.detach()
            error = (now.double() - W.double() - delta).norm() / delta.norm()
            assert rounding[name] == pytest.approx(error.item(), rel=1e-3)
            # Half a unit in the last place of the result, and float32's of the sum.
            allowed = torch.finfo(dtype).eps / 2 * (1 + 2**-7) * (W.double() + delta).abs() + 1e-6 * delta.abs().max()
            assert ((now.double() - W.double() - delta).abs() <= allowed).all()
        assert rounding.keys() == written.keys()
    assert same(base, before)


class Stop(Exception):
    pass


@pytest.mark.parametrize("where", ["inside", "on the way in"])
def test_an_exception_leaves_the_base_as_it_was(where):
    base, tuned = adapted(llama)
    before, written = state(base), dict(artent.weight_updates(tuned))

    def pairs():
        yield from written.items()
        if where == "on the way in":
            assert not same(base, before)
            raise Stop

    def block():
        with apply_control(base, pairs(), "random", seed=0):
            assert not same(base, before)
            raise Stop

    with pytest.raises(Stop):
        block()
    assert same(base, before)


@pytest.mark.parametrize(
    ("written", "kind", "error", "message"),
    [
        ({"model.layers.0.mlp.up_proj": torch.ones(40, 24)}, "flipped", ValueError, "kind is 'flipped'.*negated"),
        ({"model.layers.7.self_attn.q_proj": torch.ones(24, 24)}, "haar", ValueError, "no module 'model.layers.7"),
        ({"model.layers.0.self_attn.v_proj": torch.ones(24, 24)}, "haar", ValueError, r"is \(24, 24\).*\(12, 24\)"),
        ({"model.layers.0.mlp.act_fn": torch.ones(2, 2)}, "haar", ValueError, "no whole floating-point weight"),
        ({"model.layers.0.self_attn.q_proj": None}, "haar", TypeError, "q_proj is a NoneType"),
        ({}, "haar", ValueError, "updates is empty"),
    ],
)
def test_what_fits_no_model_is_refused(written, kind, error, message):
    base = llama()
    before = state(base)
    with pytest.raises(error, match=message), apply_control(base, written, kind, seed=0):
        pass
    assert same(base, before)


def test_a_model_under_adapters_is_refused():
    _, tuned = adapted(llama)
    written = dict(artent.weight_updates(tuned))
    with pytest.raises(ValueError, match="under an adapter"), apply_control(tuned.get_base_model(), written, "haar", 0):
        pass


@torch.no_grad()
def test_the_record_is_of_the_broken_model(tmp_path):
    base, tuned = adapted(llama)
    before, written = state(base), dict(artent.weight_updates(tuned))
    measure = MeasureConfig(lengths=(8, 16), texts=2, rows=4, chain_texts=0, step_texts=1)
    options = {"method": "lora-r4", "seed": 0, "folder": tmp_path, "stem": "negated-0"}
    (record,) = control_records(base, written, IDS, measure, "negated", **options)
    assert same(base, before)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.neg_()
    want = artent.attention_entanglement(tuned, IDS, lengths=(16,))
    torch.testing.assert_close(record["s_ext"], want.s_ext[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(record["entropy"], want.entropy, atol=1e-6, rtol=0)
    assert (record["kind"], record["control"], record["from"]) == ("control", "negated", "lora-r4")
    assert record["samples"] == "samples/negated-0.safetensors"
    rows = controls.samples_record(tuned, IDS, measure, "turned", tmp_path)["file"]
    broken, turned = (load_file(tmp_path / file) for file in (record["samples"], rows))
    assert all((broken[key] - turned[key]).abs().max() < 1e-3 for key in ("rows", "outputs"))
