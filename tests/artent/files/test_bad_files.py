"""Files that are damaged, missing, or of another model: told by name, the likely cause too, before a tensor is read."""

import shutil
import struct

import pytest
import torch
from artent.checkpoints import pending_updates
from artent.reading.safetensors_files import SafetensorsFiles
from mps_models import gpt2, llama
from saved_models import (
    A0,
    ADAPTER,
    INDEX,
    KEY,
    PAIR,
    Q0,
    SHARDED,
    adapter,
    described,
    lost,
    model,
    other_base,
    raw,
    replaced,
    without,
)

SHARD = "model-00002-of-"
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
