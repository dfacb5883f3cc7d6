"""Conversations as tokens: what is trained on is what the assistant said, under every kind of chat template."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from artent.study.data import byte_tokenizer, load_data
from data_sets import MARKED, UNMARKED, answers, config, llama_tokenizer, openthoughts, trained_text, tulu, write_lines

TOKENIZERS = {
    "base model, our template": (byte_tokenizer, "\0"),
    "merges, our template": (lambda: llama_tokenizer(None), "<|end|>"),
    "llama": (llama_tokenizer, "<|eot|>"),
    "marked": (lambda: llama_tokenizer(MARKED), "<|eot|>"),
    "unmarked, lines between turns": (lambda: llama_tokenizer(UNMARKED), "<|eot|>"),
}


@pytest.mark.parametrize("make_rows", [tulu, openthoughts])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_labels_are_the_answers_and_the_end_of_each(kind, make_rows, tmp_path):
    make, end = TOKENIZERS[kind]
    tokenizer, rows = make(), make_rows(30)
    path = write_lines(tmp_path / "rows.jsonl", rows)
    corpus = load_data(config(path, context=4096, packing=False), tokenizer)
    told = sorted(trained_text(tokenizer, row) for row in corpus.train + corpus.held_out)
    assert told == sorted("".join(answer + end for answer in answers(row)) for row in rows)
    assert corpus.told["rows_used"] == 30
    assert corpus.told["texts_truncated"] == corpus.told["messages_left_out"] == 0


def one(tmp_path, messages, tokenizer, **options):
    """The row of a conversation, beside another one that the split needs."""
    other = [{"role": "user", "content": "other"}, {"role": "assistant", "content": "OTHER"}]
    path = write_lines(tmp_path / "rows.jsonl", [{"messages": messages}, {"messages": other}])
    corpus = load_data(config(path, context=512, packing=False, **options), tokenizer)
    rows = [row for row in corpus.train + corpus.held_out if "OTHER" not in tokenizer.decode(row["input_ids"])]
    return corpus, rows


def test_the_text_of_a_llama_like_template_to_the_letter(tmp_path):
    """Written out by hand: one BOS although the tokenizer adds one, and not today's date."""
    messages = [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": "rank?"},
        {"role": "assistant", "content": "  χ = 8"},
    ]
    tokenizer = llama_tokenizer()
    _, (row,) = one(tmp_path, messages, tokenizer)
    header = "<|start_header|>{}<|end_header|>\n\n".format
    assert tokenizer.decode(row["input_ids"], clean_up_tokenization_spaces=False) == (
        f"<|begin|>{header('system')}Today: 26 Jul 2024\n\nBe brief.<|eot|>"
        f"{header('user')}rank?<|eot|>{header('assistant')}χ = 8<|eot|>"
    )
    assert (row["input_ids"] == tokenizer.bos_token_id).sum() == 1
    assert trained_text(tokenizer, row) == "χ = 8<|eot|>"


def test_the_template_of_llama_3_2(tmp_path):
    """The real one, as trl brings it."""
    template = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates" / "llama3_2.jinja"
    if not template.exists():
        pytest.skip("this trl has no templates of its own")
    tokenizer, rows = llama_tokenizer(template.read_text()), tulu(20)
    corpus = load_data(config(write_lines(tmp_path / "rows.jsonl", rows), context=4096, packing=False), tokenizer)
    told = sorted(trained_text(tokenizer, row) for row in corpus.train + corpus.held_out)
    assert told == sorted("".join(answer + "<|eot_id|>" for answer in answers(row)) for row in rows)
    for row in corpus.train:
        text = tokenizer.decode(row["input_ids"], clean_up_tokenization_spaces=False)
        assert text.startswith("<|begin|><|start_header_id|>system<|end_header_id|>")
        assert "Today Date: 26 Jul 2024" in text
        assert text.count("<|begin|>") == 1


def test_a_mark_may_end_within_a_character_of_several_tokens(tmp_path):
    template = MARKED.replace("m['content'] + '<|eot|>' }}{% endgen", "m['content'] }}{% endgen")
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "bond 龘"}]
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    _, (row,) = one(tmp_path, messages, tokenizer)
    assert bytes(row["labels"][row["labels"] >= 0].tolist()).decode() == "bond 龘"


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("messages", "trained", "left_out"),
    [
        ([USER, ANSWER, {"role": "user", "content": "and?"}], "a\0", 1),
        ([USER, {"role": "assistant", "content": None}, USER, ANSWER], "a\0", 1),
        ([USER, {"role": "assistant", "content": " \n"}, {"role": "tool", "content": "7"}, ANSWER], "a\0", 2),
        ([{"role": "system"}, USER, ANSWER], "a\0", 1),
        ([ANSWER, USER, {"role": "assistant", "content": "b"}], "b\0", 1),
        ([{"role": "Human", "content": "q"}, {"from": "gpt", "value": "b"}], "b\0", 0),
        ([USER, ANSWER, ANSWER], "a\0a\0", 0),
        ([USER, {"role": "assistant", "content": "half \ud83d"}], "half ?\0", 0),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "assistant"}], "assistant\0", 0),
    ],
)
def test_odd_conversations(messages, trained, left_out, tmp_path):
    tokenizer = byte_tokenizer()
    corpus, (row,) = one(tmp_path, messages, tokenizer)
    assert trained_text(tokenizer, row) == trained
    assert corpus.told["messages_left_out"] == left_out


@pytest.mark.parametrize("messages", [[], None, [USER], [ANSWER], [USER, {"role": "assistant", "content": ""}]])
def test_rows_without_an_answer_are_skipped_and_counted(messages, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [*tulu(5), {"messages": messages}])
    told = load_data(config(path, packing=False)).told
    assert (told["rows_read"], told["rows_used"], told["rows_skipped"]) == (6, 5, {"no answer": 1})
    assert "1 skipped (no answer)" in told["sentence"]


def test_prompt_and_completion_is_a_conversation_of_two(tmp_path):
    rows = [{"prompt": f"q{at}", "completion": f"a{at}"} for at in range(4)]
    rows += [{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "b"}]}]
    tokenizer = byte_tokenizer()
    corpus = load_data(config(write_lines(tmp_path / "rows.jsonl", rows), packing=False), tokenizer)
    told = {trained_text(tokenizer, row) for row in corpus.train + corpus.held_out}
    assert told == {"a0\0", "a1\0", "a2\0", "a3\0", "b\0"}


def test_truncation_is_counted_and_an_answer_beyond_it_is_no_row(tmp_path):
    """Lengths of our template counted by hand: [user]\\n q \\n\\n[assistant]\\n a END, in bytes."""
    frame, context = len("[user]\n" + "\n\n[assistant]\n" + "\0"), 100
    sizes = [(10, 20), (10, 200), (30, 90), (200, 10), (50, 50 - frame), (50, 51 - frame), (6, 6)]
    rows = [
        {"messages": [{"role": "user", "content": f"{at:0{q}}"}, {"role": "assistant", "content": "a" * a}]}
        for at, (q, a) in enumerate(sizes)
    ]
    corpus = load_data(config(write_lines(tmp_path / "rows.jsonl", rows), context=context, packing=False))
    over = [max(0, q + a + frame - context) for q, a in sizes if q < 100]
    told = corpus.told
    assert told["rows_skipped"] == {"no answer within the context": 1}
    assert (told["texts_truncated"], told["tokens_lost"]) == (sum(map(bool, over)), sum(over))
    lengths = sorted(len(row["input_ids"]) for row in corpus.train + corpus.held_out)
    assert lengths == sorted(min(context, q + a + frame) for q, a in sizes if q < 100)
    kept = sum(min(a + 1, context - (q + frame - 1)) for q, a in sizes if q < 100)
    labels = torch.cat([row["labels"] for row in corpus.train + corpus.held_out])
    assert (labels != -100).sum() == kept


def test_a_template_that_writes_turns_otherwise_later_is_refused_by_row(tmp_path):
    forgetful = (
        "{% for m in messages %}{{ m['role'] + ': ' + (m['content'] if loop.last else '...') + '\n' }}{% endfor %}"
    )
    shouting = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | upper + '\n' }}{% endfor %}"
    silent = "{% if false %}{% generation %}x{% endgeneration %}{% endif %}{{ messages[0]['content'] }}"
    path = write_lines(tmp_path / "rows.jsonl", [{"messages": [USER, ANSWER] * 2}, *tulu(3, turns=1)])
    tokenizer = byte_tokenizer()
    for template, words in (
        (forgetful, r"message 2 of line 1 of .*rows.jsonl otherwise when more follows"),
        (shouting, r"changes the assistant's words in message \d of line \d"),
        (silent, r"marks no token of line \d"),
    ):
        tokenizer.chat_template = template
        with pytest.raises(ValueError, match=words):
            load_data(config(path, packing=False), tokenizer)


def test_rows_that_a_template_refuses_are_skipped_with_its_reason(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    )
    rows = tulu(12)
    path = write_lines(tmp_path / "rows.jsonl", rows)
    corpus = load_data(config(path, context=4096, packing=False), tokenizer)
    with_system = sum(row["messages"][0]["role"] == "system" for row in rows)
    assert corpus.told["rows_skipped"] == {"refused by the chat template: no system here": with_system}
    told = sorted(trained_text(tokenizer, row) for row in corpus.train + corpus.held_out)
    assert told == sorted("".join(f"{a}\n" for a in answers(r)) for r in rows if r["messages"][0]["role"] != "system")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["messages"][0]["role"] == "system"))
    with pytest.raises(ValueError, match=r"no row of .* can be used.*no system here"):
        load_data(config(path, packing=False), tokenizer)


def test_a_tokenizer_without_offsets_is_refused(tmp_path):
    from transformers import ByT5Tokenizer

    with pytest.raises(ValueError, match="ByT5Tokenizer does not tell where"):
        load_data(config(write_lines(tmp_path / "rows.jsonl", tulu(4))), ByT5Tokenizer())
