"""PEFT's ``rank_pattern`` and ``alpha_pattern``: what we write, PEFT reads as meant, module by module."""

import warnings

import numpy as np
import peft
import pytest
import torch
from artent.ranks import RankSuggestion
from artent.ranks.patterns import pattern_of
from transformers import LlamaConfig, LlamaForCausalLM


def llama(**options):
    shape = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape | heads | options))


class Odd(torch.nn.Module):
    """Names that end in one another, and names that a careless regular expression confuses."""

    NAMES = (
        *(
            "q",
            "a.q",
            "b.a.q",
            "b.q",
            "axq",
            "1.q",
            "11.q",
            "layers.1.q",
            "layers.11.q",
            "layers.1.a.q",
            "layers.111.q",
        ),
        *("up+proj", "upproj", "b.up+proj", "(x)", "b.(x)"),
    )

    def __init__(self):
        super().__init__()
        for name in self.NAMES:
            at, *parts = self, *name.split(".")
            for part in parts[:-1]:
                if not hasattr(at, part):
                    at.add_module(part, torch.nn.Module())
                at = getattr(at, part)
            at.add_module(parts[-1], torch.nn.Linear(6, 5))

    def forward(self, x):
        return x


def suggestion(ranks, shapes, alpha=lambda name, r: 2 * r):
    alphas = {name: alpha(name, r) for name, r in ranks.items()}
    return RankSuggestion(ranks, dict.fromkeys(ranks, 1.0), shapes, dict.fromkeys(ranks), alphas)


def linear(model, ends):
    matrices = {n: m.weight.shape for n, m in model.named_modules() if getattr(m, "weight", None) is not None}
    return {name: tuple(shape) for name, shape in matrices.items() if len(shape) == 2 and name.endswith(ends)}


def layer_of(name):
    return int(name.split(".")[2]) if ".layers." in name else -1


def drawn(seed, ranks):
    generator = np.random.default_rng(seed)
    return lambda name: int(generator.choice(ranks))


ATTENTION, EMBEDDINGS = ("q_proj", "v_proj"), ("embed_tokens", "lm_head")
RANKS = {
    "all equal": (ATTENTION, lambda name: 4, {}),
    "kinds agree": (ATTENTION, lambda name: 4 if "q" in name.split(".")[-1] else 8, {"v_proj": 8}),
    "layers 1 and 11": (
        ("q_proj", "down_proj"),
        lambda name: {1: 2, 11: 3}.get(layer_of(name), 5),
        {f"model.layers.{i}.{m}": r for i, r in ((1, 2), (11, 3)) for m in ("self_attn.q_proj", "mlp.down_proj")},
    ),
    "one kind agrees, one layer of the other does not": (
        ATTENTION,
        lambda name: 8 if "v_proj" in name else 3 if layer_of(name) == 1 else 4,
        {"v_proj": 8, "model.layers.1.self_attn.q_proj": 3},
    ),
    "embeddings": (
        (*ATTENTION, *EMBEDDINGS),
        lambda name: 2 if name.endswith(EMBEDDINGS) else 4,
        {"model.embed_tokens": 2, "lm_head": 2},
    ),
    "anything": ((*ATTENTION, "down_proj", *EMBEDDINGS), drawn(0, range(1, 9)), None),
    "often the same": ((*ATTENTION, "o_proj", "gate_proj"), drawn(1, [4, 4, 4, 4, 4, 7]), None),
}


@pytest.mark.parametrize("case", RANKS)
def test_peft_gives_every_module_its_rank_and_its_scaling(case, tmp_path):
    ends, rank, pattern = RANKS[case]
    base = llama()
    shapes = linear(base, ends)
    chosen = suggestion({name: rank(name) for name in shapes}, shapes, lambda name, r: 2 * r + len(name) % 2)
    if pattern is not None:
        assert chosen.rank_pattern == pattern
    model = peft.get_peft_model(base, chosen.lora_config(lora_dropout=0.1))
    assert model.get_nb_trainable_parameters()[0] == chosen.parameters
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    for adapted in (model, peft.PeftModel.from_pretrained(llama(), tmp_path)):
        assert adapted.peft_config["default"].lora_dropout == 0.1
        layers = {
            n: m for n, m in adapted.get_base_model().named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)
        }
        assert {name: layer.r["default"] for name, layer in layers.items()} == chosen.ranks
        scaling = {name: layer.scaling["default"] for name, layer in layers.items()}
        assert scaling == {name: chosen.alphas[name] / chosen.ranks[name] for name in shapes}


@pytest.mark.parametrize("seed", range(12))
def test_names_that_end_in_one_another_keep_their_own_ranks(seed):
    model = Odd()
    shapes = dict.fromkeys(Odd.NAMES, (5, 6))
    pick = drawn(seed, [1, 2] if seed % 2 else [1, 2, 3, 4])
    chosen = suggestion({name: pick(name) for name in shapes}, shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of keys that match nothing
        adapted = peft.get_peft_model(model, chosen.lora_config()).get_base_model()
    for name in shapes:
        assert adapted.get_submodule(name).r["default"] == chosen.ranks[name]
        for order in (1, -1):  # any order of the keys
            keys = list(chosen.rank_pattern)[::order]
            key = peft.utils.other.get_pattern_key(keys, name)
            assert chosen.rank_pattern.get(key, chosen.r) == chosen.ranks[name]


KEYS = {
    "a dot that would match an x": (
        {"l.0.a.q": 3, "l.1.a.q": 3, "l.0.axq": 2, "l.1.axq": 2, "l.0.b.q": 2, "l.2.b.q": 2, "l.0.k": 2, "l.1.k": 2},
        (2, {r"a\.q": 3}),
    ),
    "two towers": (
        {
            "text.layers.0.q": 3,
            "image.layers.0.q": 3,
            "text.layers.1.q": 2,
            "image.layers.1.q": 2,
            "text.layers.2.q": 2,
        },
        (2, {"text.layers.0.q": 3, "image.layers.0.q": 3}),
    ),
    "the default that saves most keys": (
        {"l.0.q": 4, "l.1.q": 4, "l.2.q": 5, "l.0.v": 8, "l.1.v": 8, "l.2.v": 8},
        (4, {"l.2.q": 5, "v": 8}),
    ),
    "the smallest of equals": ({"a": 2, "b": 1}, (1, {"a": 2})),
    "one end in two places": (
        {"l.0.mlp.out": 2, "l.1.mlp.out": 2, "l.0.attn.out": 6, "l.1.attn.out": 6},
        (2, {"attn.out": 6}),
    ),
}


@pytest.mark.parametrize("case", KEYS)
def test_keys_are_as_short_as_they_may_be(case):
    values, expected = KEYS[case]
    assert pattern_of(values) == expected
