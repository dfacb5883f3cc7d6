"""Folders with more in them than a model, or less: what is read all the same, what never is, what nobody can tell."""

import pickle
import warnings
from contextlib import suppress

import pytest
import torch
from artent import profile_model, weight_updates
from mps_models import llama, shake
from safetensors.torch import load_file, save_file
from saved_models import (
    A0,
    ADAPTER,
    KEY,
    PAIR,
    Q0,
    adapter,
    edited,
    lost,
    model,
    other_base,
    replaced,
)


class Trap:
    """Whoever unpickles it makes the file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


# where it is put; what is passed
PICKLES = {
    "a folder of .bin": ("tuned/pytorch_model.bin", PAIR),
    ".bin": ("tuned/pytorch_model.bin", ("tuned/pytorch_model.bin", "base")),
    ".pt": ("tuned/model.pt", ("tuned/model.pt", "base")),
    ".pth as base": ("base/consolidated.00.pth", ("tuned", "base/consolidated.00.pth")),
    "renamed": ("tuned/model.safetensors", PAIR),
    "renamed as base": ("base/model.safetensors", PAIR),
    "an adapter's .bin": ("adapter/adapter_model.bin", ADAPTER),
    "an adapter's, renamed": ("adapter/adapter_model.safetensors", ADAPTER),
}


@pytest.mark.parametrize("written_by", ["torch", "pickle"])
@pytest.mark.parametrize("case", PICKLES)
def test_pickles_are_never_opened(case, written_by, files):
    place, passed = PICKLES[case]
    sprung, file = files / "sprung", files / place
    for weights in file.parent.glob("*.safetensors"):
        weights.unlink()
    if written_by == "torch":
        torch.save({KEY: Trap(sprung)}, file)
    else:
        file.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match=r"[Pp]ickle"):
        list(weight_updates(*(files / name for name in passed)))
    assert not sprung.exists()
    with suppress(RuntimeError), open(file, "rb") as opened:  # a plain pickle is no checkpoint, as torch sees too late
        torch.load(opened, weights_only=False)
    assert sprung.exists()  # the trap works


def test_pickles_beside_safetensors_are_left_alone(files):
    expected = dict(weight_updates(files / "tuned", files / "base"))
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):  # a Trainer's checkpoint holds the last two
        torch.save(Trap(files / "sprung"), files / "tuned" / name)
    found = dict(weight_updates(files / "tuned", files / "base"))
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not (files / "sprung").exists()


def test_other_safetensors_beside_the_model_are_left_alone(files):
    """Mistral's folders hold a consolidated copy beside the shards, a trainer's the weights that it began with."""
    expected = dict(weight_updates(files / "tuned", files / "base"))
    others = {KEY: torch.ones(24, 24), "layers.0.attention.wq.weight": torch.ones(24, 24)}
    for place in ("sharded/consolidated.safetensors", "tuned/artent_base.safetensors", "base/a.safetensors"):
        save_file(others, files / place)
    for tuned in ("sharded", "tuned"):
        found = dict(weight_updates(files / tuned, files / "base"))
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    begun = dict(weight_updates(files / "tuned", files / "tuned" / "artent_base.safetensors", targets=[Q0]))[Q0]
    assert torch.equal(begun, load_file(files / "tuned" / "model.safetensors")[KEY] - 1)


INCOMPLETE = {
    "a weight that base has": (model(lost(KEY)), f"1 weights of base are not in the tuned model.*{Q0}.*incomplete"),
    "a layer that base has": (other_base(lambda: llama(num_hidden_layers=3)), r"7 weights of base.*layers\.2\."),
    "no floating point on either side": (
        lambda files: [model(replaced(KEY, torch.Tensor.char), side)(files) for side in PAIR],
        f"1 matrices are not floating point.*{Q0}.*quantised",
    ),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_what_is_left_out_is_told(case, files):
    damage, said = INCOMPLETE[case]
    everything = set(dict(weight_updates(files / "tuned", files / "base")))
    damage(files)
    with pytest.warns(UserWarning, match=said):
        found = set(dict(weight_updates(files / "tuned", files / "base")))
    assert everything - found <= {Q0}


def test_a_state_dict_of_a_few_weights_may_be_held_against_a_whole_base(files):
    tensors = load_file(files / "tuned" / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(dict(weight_updates({KEY: tensors[KEY]}, files / "base", targets=[Q0]))) == [Q0]


@pytest.mark.parametrize("where", ["tuned", "base", "both"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_weight_is_named_and_not_taken_for_an_unchanged_one(where, value, files):
    for side in ("tuned", "base") if where == "both" else (where,):
        edited(files / side / "model.safetensors", lambda tensors: tensors[KEY].view(-1)[7].fill_(value))
    assert Q0 in dict(weight_updates(files / "tuned", files / "base", targets=["q_proj"]))
    with pytest.raises(ValueError, match=f"{Q0}: holds NaN or Inf"):
        profile_model(files / "tuned", files / "base", targets=["q_proj"])


HALVES = [torch.float16, torch.bfloat16]
FLOATS = [*HALVES, torch.float32, torch.float64]


@pytest.mark.parametrize("before", FLOATS, ids=str)
@pytest.mark.parametrize("after", FLOATS, ids=str)
def test_dtypes_may_differ_and_lose_nothing(after, before, files):
    pair = []
    for side, dtype in (("tuned", after), ("base", before)):
        edited(files / side / "model.safetensors", replaced(KEY, lambda weight, dtype=dtype: weight.to(dtype)))
        pair.append(load_file(files / side / "model.safetensors")[KEY])
    update = dict(weight_updates(files / "tuned", files / "base", targets=[Q0]))[Q0]
    wide = torch.float64 if torch.float64 in (after, before) else torch.float32
    assert update.dtype == wide
    assert torch.equal(update, pair[0].to(wide) - pair[1].to(wide))


def test_factors_may_have_two_dtypes(files):
    edited(files / "adapter" / "adapter_model.safetensors", replaced(A0, torch.Tensor.bfloat16))
    tensors = load_file(files / "adapter" / "adapter_model.safetensors")
    delta = tensors[A0.replace("_A", "_B")].double() @ tensors[A0].double()  # the scaling drops out of the profile
    found = profile_model(files / "adapter", targets=[Q0])[Q0]
    p = torch.linalg.svdvals(delta).square()
    assert abs(float(found.cut_entropy) - float(torch.special.entr(p / p.sum()).sum())) < 1e-4


def test_what_files_cannot_tell(files):
    """Another fine-tuning of the same shapes passes for a base, and a module without any factor for one not adapted."""
    other = shake(llama(), seed=9)
    other.save_pretrained(files / "base")
    found = dict(weight_updates(files / "tuned", files / "base"))[Q0]
    assert torch.equal(found, load_file(files / "tuned" / "model.safetensors")[KEY] - other.state_dict()[KEY])
    adapter(lambda tensors: [tensors.pop(key) for key in (A0, A0.replace("_A", "_B"))])(files)
    assert Q0 not in dict(weight_updates(files / "adapter"))
