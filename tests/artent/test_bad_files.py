"""Files that are damaged, missing, or of another model: told by name, with the likely cause, before any tensor is read.

What cannot be told is here too: another fine-tuning as base, and a module whose factors are both absent.
"""

import copy
import json
import pickle
import shutil
import struct
import warnings
from contextlib import suppress

import peft
import pytest
import torch
from artent import profile_model, weight_updates
from artent.checkpoints import pending_updates
from artent.safetensors_files import SafetensorsFiles
from mps_models import gpt2, llama, shake
from safetensors.torch import load_file, save_file

Q0 = "model.layers.0.self_attn.q_proj"
KEY, A0 = f"{Q0}.weight", f"base_model.model.{Q0}.lora_A.weight"
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A base, tuned weights in one file and in shards, and an adapter, as transformers and PEFT save them."""
    folder = tmp_path_factory.mktemp("originals")
    base = llama()
    tuned = shake(copy.deepcopy(base))
    base.save_pretrained(folder / "base")
    tuned.save_pretrained(folder / "tuned")
    tuned.save_pretrained(folder / "sharded", max_shard_size="20KB")
    adapter = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"])
    shake(peft.get_peft_model(base, adapter)).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def files(originals, tmp_path):
    shutil.copytree(originals, tmp_path / "files")
    return tmp_path / "files"


def edited(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def model(change, side="tuned"):
    """A damage done to the tensors of ``side``."""
    return lambda files: edited(files / side / "model.safetensors", change)


def raw(change, where="tuned/model.safetensors"):
    """A damage done to the bytes of a file."""
    return lambda files: (files / where).write_bytes(change((files / where).read_bytes()))


def adapter(change):
    return lambda files: edited(files / "adapter" / "adapter_model.safetensors", change)


def described(change, where="adapter/adapter_config.json"):
    """A damage done to a JSON file."""

    def damage(files):
        found = json.loads((files / where).read_text())
        change(found)
        (files / where).write_text(json.dumps(found))

    return damage


def other_base(make):
    return lambda files: make().save_pretrained(files / "base")


def without(name):
    def damage(files):
        for file in (files / "sharded").glob(f"{name}*"):
            file.unlink()

    return damage


def replaced(key, value):
    return lambda tensors: tensors.update({key: value(tensors[key]) if callable(value) else value})


def lost(key):
    return lambda tensors: tensors.pop(key)


PAIR, SHARDED, ADAPTER = ("tuned", "base"), ("sharded", "base"), ("adapter",)
HEADER = "cannot be read as safetensors.*truncated.*git-lfs.*pickle"

# what is passed; what is done to it; what is said (ValueError)
DAMAGED = {
    # Missing, or of another model
    "a weight is missing in base": (PAIR, model(lost(KEY), "base"), f"base has no weight '{KEY}'.*1 names"),
    "other shapes": (PAIR, model(replaced(KEY, torch.ones(24, 30)), "base"), rf"{Q0}: shape \(24, 24\).*\(24, 30\)"),
    "base of another size": (PAIR, other_base(lambda: llama(hidden_size=48)), r"\(48, 24\).*\(48, 48\).*another size"),
    "base with fewer layers": (PAIR, other_base(lambda: llama(num_hidden_layers=1)), r"layers\.1\..*another arch"),
    "base of another architecture": (PAIR, other_base(gpt2), r"embed_tokens.*it holds transformer\.h\.0.*architecture"),
    # Shards and their index
    "a shard is missing": (SHARDED, without(SHARD), f"model_or_path=.*{SHARD}.*interrupted download"),
    "a shard of base is missing": (("tuned", "sharded"), without(SHARD), f"base=.*{SHARD}.*interrupted download"),
    "index is not JSON": (SHARDED, raw(lambda _: b'{"weight_map": ', f"sharded/{INDEX}"), f"{INDEX}.*damaged file"),
    "index is no index": (SHARDED, raw(lambda _: b"[]", f"sharded/{INDEX}"), f"{INDEX}.*damaged file"),
    "index without its map": (SHARDED, described(lost("weight_map"), f"sharded/{INDEX}"), "weight_map.*damaged"),
    "index of another model": (
        SHARDED,
        described(lambda d: d["weight_map"].update({"lost.weight": d["weight_map"][KEY]}), f"sharded/{INDEX}"),
        r"1 tensors.*lost\.weight.*two checkpoints",
    ),
    "a whole model beside the shards of another": (
        SHARDED,
        lambda files: shutil.copy(files / "base" / "model.safetensors", files / "sharded" / "model.safetensors"),
        "does not name model.safetensors.*two checkpoints",
    ),
    "two models in one folder": (
        PAIR,
        lambda files: [
            shutil.move(files / "tuned" / "model.safetensors", files / "tuned" / "one.safetensors"),
            shutil.copy(files / "base" / "model.safetensors", files / "tuned" / "two.safetensors"),
        ],
        "is in one.safetensors and in two.safetensors.*two checkpoints",
    ),
    # Bytes
    "truncated": (PAIR, raw(lambda data: data[:-100]), HEADER),
    "base truncated": (PAIR, raw(lambda data: data[:-100], "base/model.safetensors"), f"base: .*{HEADER}"),
    "a shard truncated": (
        SHARDED,
        lambda files: raw(lambda data: data[:-4], next((files / "sharded").glob(f"{SHARD}*")))(files),
        f"{SHARD}.*{HEADER}",
    ),
    "truncated within its header": (PAIR, raw(lambda data: data[:100]), HEADER),
    "header is not JSON": (PAIR, raw(lambda data: data[:8] + b"?" * 20 + data[28:]), HEADER),
    "header as long as no file": (PAIR, raw(lambda data: struct.pack("<Q", 2**62) + data[8:]), HEADER),
    "zero bytes": (PAIR, raw(lambda _: b""), HEADER),
    "a page that says not found": (PAIR, raw(lambda _: b"<html>not found</html>"), HEADER),
    "a git-lfs pointer": (PAIR, raw(lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), HEADER),
    # Numbers that make no update
    "int8 in base": (PAIR, model(replaced(KEY, torch.Tensor.char), "base"), rf"{Q0}: .*i8 in base.*quantised"),
    "int8 in the tuned model": (PAIR, model(replaced(KEY, torch.Tensor.char)), rf"{Q0}: .*i8 in the tuned.*quantised"),
    "4 bits in the tuned model": (
        PAIR,
        model(replaced(KEY, torch.zeros(288, 1, dtype=torch.uint8))),
        rf"{Q0}: .*u8 in the tuned.*quantised",
    ),
    "complex": (PAIR, model(replaced(KEY, lambda w: w.to(torch.complex64))), rf"{Q0}: .*in the tuned model"),
    "float8 in base": (PAIR, model(replaced(KEY, lambda w: w.to(torch.float8_e4m3fn)), "base"), f"{Q0}.*quantised"),
    # An adapter's folder
    "a factor is missing": (ADAPTER, adapter(lost(A0)), rf"{Q0} has one factor.*lora_B.*damaged"),
    "factors do not match": (ADAPTER, adapter(replaced(A0, torch.ones(3, 24))), rf"{Q0}: .*\(24, 4\).*\(3, 24\)"),
    "int8 factor": (ADAPTER, adapter(replaced(A0, torch.Tensor.char)), rf"{Q0}: A: .*int8.*quantised"),
    "configuration is not JSON": (ADAPTER, raw(lambda _: b"{", ADAPTER[0] + "/adapter_config.json"), "is not JSON"),
    "configuration is a list": (ADAPTER, raw(lambda _: b"[]", ADAPTER[0] + "/adapter_config.json"), "holds a list"),
    "no lora_alpha": (ADAPTER, described(lost("lora_alpha")), "no lora_alpha.*damaged"),
    "adapter without weights": (
        ADAPTER,
        lambda files: (files / "adapter" / "adapter_model.safetensors").unlink(),
        "model_or_path=.*adapter'.*expected a .safetensors file",
    ),
    "adapter of zero bytes": (ADAPTER, raw(lambda _: b"", "adapter/adapter_model.safetensors"), HEADER),
    "lora_alpha in words": (ADAPTER, described(replaced("lora_alpha", "six")), "lora_alpha is 'six'.*a number"),
    "lora_alpha is no number": (ADAPTER, described(replaced("lora_alpha", float("nan"))), "lora_alpha is nan"),
    "patterns in a list": (ADAPTER, described(replaced("alpha_pattern", [6])), r"alpha_pattern is \[6\].*an object"),
    "factors of another rank": (ADAPTER, described(replaced("r", 8)), f"{Q0}: rank 4 in the file, 8 by its config"),
    "configuration is missing": (
        ADAPTER,
        lambda files: (files / "adapter" / "adapter_config.json").unlink(),
        "model_or_path=.*an adapter's factors.*lora_A.*adapter_config.json",
    ),
    "factors alone": (("adapter/adapter_model.safetensors",), lambda _: None, "adapter's factors.*Pass .* folder"),
    "an adapter as base": (("tuned", "adapter"), lambda _: None, "base=.*an adapter's factors.*Pass the model"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_told_before_a_tensor_is_read(case, files, monkeypatch):
    """All of it from headers and indices: a run of hours does not end at its last module."""
    passed, damage, said = DAMAGED[case]
    damage(files)
    monkeypatch.setattr(SafetensorsFiles, "__getitem__", None)
    with pytest.raises(ValueError, match=said):
        pending_updates(*(files / name for name in passed))


# what is passed; what is said; the error
NO_WEIGHTS = {
    "no such folder": ("none", r"none", FileNotFoundError),
    "a hub name": ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B", FileNotFoundError),
    "a folder without weights": ("empty", "empty.*expected a .safetensors file, or a folder", ValueError),
    "a configuration alone": ("tuned/config.json", r"config\.json.*expected a .safetensors file", ValueError),
    "an index": (f"sharded/{INDEX}", "expected a .safetensors file, or a folder.*Pass the folder", ValueError),
    "a folder of folders": (".", "its folders adapter, base, sharded do: pass one", ValueError),
    "another format": ("model.gguf", r"model\.gguf.*expected a .safetensors file", ValueError),
}


@pytest.mark.parametrize("argument", ["model_or_path", "base"])
@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_a_path_without_weights_is_told(case, argument, files):
    (files / "empty").mkdir()
    (files / "model.gguf").write_bytes(b"GGUF")
    path, said, error = NO_WEIGHTS[case]
    path = path if case == "a hub name" else files / path
    with pytest.raises(error, match=f"{argument}.*{said}"):
        pending_updates(*((path, files / "base") if argument == "model_or_path" else (files / "tuned", path)))


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
