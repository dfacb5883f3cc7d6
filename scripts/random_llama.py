"""A LLaMA of random weights in the real architecture, and a few chats, to try a study where no model can be downloaded.

    python scripts/random_llama.py DIR [--shape 1b|tiny] [--chats 200]
    artent study --config llama-1b-tulu3 --model DIR --data DIR/chats.jsonl --set …

``1b`` is Llama-3.2-1B as published (16 layers of 2048, 32 query heads on 8 key heads, rope scaling, tied embeddings,
128,256 tokens; 2.5 GB in bfloat16), ``tiny`` the same with two small layers. The tokenizer reads bytes, which are ids
of the large vocabulary as well. The chats have Tulu 3's columns (id, messages, source); their text is the documentation
that ships with Python.
"""

import argparse
import json
from pathlib import Path

import torch
from artent.study.data.tokens import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
SHAPES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8},
}
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
)


def write_model(folder, shape):
    """The folder of a causal LM: config.json, safetensors, a tokenizer with a chat template."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape],
        vocab_size=128256,
        num_key_value_heads=SHAPES[shape]["num_attention_heads"] // 4,
        head_dim=SHAPES[shape]["hidden_size"] // SHAPES[shape]["num_attention_heads"],
        max_position_embeddings=131072,
        rope_parameters=ROPE,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        dtype="bfloat16",
    )
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def write_chats(file, count):
    """Questions about Python's topics, answered by its documentation."""
    from pydoc_data.topics import topics

    with open(file, "w", encoding="utf-8") as out:
        for number, topic in enumerate(sorted(topics)):
            if number == count:
                break
            chat = [
                {"role": "user", "content": f"What does Python's reference say about {topic}?"},
                {"role": "assistant", "content": topics[topic].strip()},
            ]
            out.write(json.dumps({"id": f"topic-{number}", "messages": chat, "source": "pydoc"}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--chats", type=int, default=200)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    parameters = write_model(options.folder, options.shape)
    write_chats(options.folder / "chats.jsonl", options.chats)
    print(f"{options.folder}: {parameters:,} parameters, chats.jsonl")


if __name__ == "__main__":
    main()
