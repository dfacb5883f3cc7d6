"""A model by its shape alone: made on the meta device from its config.json, no weight is read."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from artent.reading.targets import select
from artent.study import models

__all__ = ["KNOWN", "Architecture", "adapted", "read_architecture"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_LLAMA = {
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
}
# As published in their config.json, for where neither a copy nor the hub can be reached.
KNOWN = {
    "meta-llama/Llama-3.2-1B": {
        **_LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.1-8B": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder.

    Attributes:
        name: of the model; told: where its sizes come from.
        config: transformers' configuration of it.
        hidden, mlp, heads, kv_heads, head_dim, layers, vocab: widths and counts; queries take heads · head_dim.
        tied: whether the head is the embedding.
        positions: the most tokens of a text, None where the model has no limit.
    """

    name: str
    told: str
    config: object
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocab: int
    tied: bool
    positions: int | None

    @property
    def queries(self):
        """Width of the queries, and of what attention puts out."""
        return self.heads * self.head_dim

    @property
    def keys(self):
        """Width of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    def model(self, dtype):
        """The whole model on the meta device, in ``dtype``."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config, dtype=DTYPES[dtype])


def read_architecture(model, context=None):
    """The :class:`Architecture` that a ``ModelConfig`` means; ``context`` is the small model's number of positions.

    A folder's config.json is read, or the hub's copy here; else one that is :data:`KNOWN`; else the hub is asked.
    Raises ValueError for a folder that is not there, a configuration that cannot be read, and one that is of no
    causal language model.
    """
    if model.small:
        with torch.device("meta"):
            return _architecture(model.name, "made here", models.untrained(model, context or 256).config)
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    folder = Path(model.name).expanduser()
    if not folder.is_dir() and (folder.exists() or model.name.startswith((".", "/", "~")) or model.name.count("/") > 1):
        raise ValueError(f"model.name: there is no folder {model.name}")
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            adapter = (folder / "adapter_config.json").is_file()
            hint = "it holds an adapter; give the model it belongs to" if adapter else "is it a model's folder?"
            raise ValueError(f"model.name: the folder {model.name} has no config.json ({hint})")
        found, told = _read(AutoConfig, str(folder), model.name), "its config.json"
    else:
        found, told = _from_hub(AutoConfig, model.name)
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"model.name: {model.name} is no causal language model: its config.json says {found.model_type!r}"
        )
    return _architecture(model.name, told, found)


def adapted(architecture, method, targets, dtype):
    """What ``method`` trains, on the meta device: the model itself, or the model under adapters of ``targets``.

    Raises ValueError where ``targets`` match no linear layer of the model, naming those it has.
    """
    model = architecture.model(dtype)
    linear = linear_layers(model)
    try:
        select(linear, list(targets), "linear layers")
    except ValueError:
        have = sorted({name.rpartition(".")[2] for name in linear})
        missing = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in linear)]
        raise ValueError(
            f"measure.targets: {', '.join(missing)} is no linear layer of {architecture.name}; it has {', '.join(have)}"
        ) from None
    with _told(f"{method.label}: its adapter cannot be made"), torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # How LoRA starts changes values, not sizes.
        return models.adapt(model, replace(method, init=True) if method.kind == "lora" else method, targets, 0)


def linear_layers(model):
    """{name: (outputs, inputs)} of the linear layers, the head left out."""
    from transformers.pytorch_utils import Conv1D

    found, head = {}, model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head:
            turned = isinstance(module, Conv1D)
            found[name] = tuple(module.weight.shape)[:: -1 if turned else 1]
    return found


def _from_hub(auto, name):
    """(configuration, where it is from): a copy that lies here, a known one, or the hub's own."""
    from transformers import LlamaConfig

    try:
        return auto.from_pretrained(name, local_files_only=True), "its config.json"
    except (OSError, ValueError, KeyError):
        if name in KNOWN:
            return LlamaConfig(**KNOWN[name]), "sizes as published, built in: no copy of its config.json lies here"
    return _read(auto, name, name), "its config.json, from the hub"


def _read(auto, source, name):
    with _told(f"model.name: the config.json of {name} cannot be read"):
        return auto.from_pretrained(source, trust_remote_code=False)


def _architecture(name, told, config):
    text = config.get_text_config()
    hidden, heads = text.hidden_size, text.num_attention_heads
    mlp = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    sizes = (hidden, mlp, heads, kv_heads, head_dim, text.num_hidden_layers, text.vocab_size)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    return Architecture(name, told, config, *sizes, tied, getattr(text, "max_position_embeddings", None))


@contextmanager
def _told(what):
    """Errors of transformers and PEFT as one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        why = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ValueError(f"{what} ({why[0].rstrip(' .:')})") from error
