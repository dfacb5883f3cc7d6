"""Small data sets in the schemas of the real ones, and tokenizers of the kinds that real models bring."""

import json
import random
from types import SimpleNamespace

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = "bond site rank cut chain layer head token naïve 漢字 Σ valley entropy model"
WORDS = TEXT.split()

# Written in the manner of Llama 3's: headers of special tokens, a date in the system message, trimmed contents.
LLAMA_LIKE = (
    "{{ bos_token }}"
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y %H:%M:%S') %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|start_header|>system<|end_header|>\\n\\nToday: ' + date_string + '\\n\\n' + system + '<|eot|>' }}"
    "{% for m in messages %}"
    "{{ '<|start_header|>' + m['role'] + '<|end_header|>\\n\\n' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header|>assistant<|end_header|>\\n\\n' }}{% endif %}"
)
# In the manner of ChatML: a line begins after every turn, and the template marks what the assistant says.
MARKED = (
    "{% for m in messages %}{{ '<|start_header|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|eot|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|eot|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
)
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "") + (
    "{% if add_generation_prompt %}{{ '<|start_header|>assistant\\n' }}{% endif %}"
)


def sentence(rng, words=8):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, words)))


def tulu(count, seed=0, turns=3):
    """Rows as of allenai/tulu-3-sft-mixture: id, messages, source."""
    rng, rows = random.Random(seed), []
    for at in range(count):
        messages = [{"role": "system", "content": "Be brief."}] if at % 4 == 0 else []
        for turn in range(rng.randint(1, turns)):
            messages.append({"role": "user", "content": f"{at}.{turn} {sentence(rng)}?"})
            messages.append({"role": "assistant", "content": f"{sentence(rng)}."})
        rows.append({"id": f"set_{at}", "messages": messages, "source": "ai2-adapt-dev/some_converted"})
    return rows


def openthoughts(count, seed=0):
    """Rows as of open-thoughts/OpenThoughts3-1.2M: difficulty, source, domain, conversations."""
    rng = random.Random(seed)
    return [
        {
            "difficulty": 8 if at % 2 else None,
            "source": "some_source",
            "domain": "math",
            "conversations": [
                {"from": "human", "value": f"{at} {sentence(rng)}?"},
                {"from": "gpt", "value": f"<think>\n{sentence(rng)}\n</think>\n\n{sentence(rng)}"},
            ],
        }
        for at in range(count)
    ]


def config(name, **options):
    values = {"split": "train", "samples": None, "context": 256, "packing": True, "held_out": 0.05, "seed": 0}
    return SimpleNamespace(name=str(name), **{**values, **options})


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(row):
    """What the assistant says in a row of either schema, message by message."""
    told = [(m.get("role", m.get("from")), m.get("content", m.get("value"))) for m in conversation_of(row)]
    return [content for role, content in told if role in ("assistant", "gpt")]


def conversation_of(row):
    return row["messages"] if "messages" in row else row["conversations"]


def trained_text(tokenizer, row):
    """What the tokens with labels say, special tokens and all."""
    return tokenizer.decode(row["labels"][row["labels"] != -100].tolist(), clean_up_tokenization_spaces=False)


def llama_tokenizer(template=LLAMA_LIKE):
    """Byte-pair encoding with merges, special tokens for headers, and a BOS before everything that it tokenises."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|start_header|>", "<|end_header|>", "<|eot|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rng = random.Random(1)
    tokenizer.train_from_iterator(
        (sentence(rng) for _ in range(200)),
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>")
    made.chat_template = template
    return made
