import artent  # noqa: F401  (registers attn_implementation="artent")
import pytest
import torch
import transformers

_FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 6}),
    "qwen2": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {"head_dim": 8, "sliding_window": 6, "attn_logit_softcapping": 1.0},
    ),
}


@pytest.fixture
def tiny():
    """tiny(attn_implementation, family="llama", **config): the same random decoder for every implementation."""

    def build(implementation, family="llama", **config):
        config_name, model_name, extra = _FAMILIES[family]
        sizes = {
            "vocab_size": 61,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "initializer_range": 0.25,  # logits of order one, so that attention is far from uniform
        }
        torch.manual_seed(0)
        model_config = getattr(transformers, config_name)(
            **{**sizes, **extra, **config}, attn_implementation=implementation
        )
        return getattr(transformers, model_name)(model_config).eval()

    return build


@pytest.fixture
def ids():
    return torch.randint(1, 61, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def padding():
    """padding(ids, side): three texts of 20, 15 and 9 real tokens."""

    def mask(ids, side):
        real = torch.arange(ids.shape[1]) < torch.tensor([[20], [15], [9]])
        return (real if side == "right" else real.flip(-1)).long()

    return mask
