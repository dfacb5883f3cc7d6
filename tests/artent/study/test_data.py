"""Texts as a corpus: the split, packing, padding, counts, and that a model sees packed texts as if each were alone."""

import hashlib
import importlib.util
import itertools
import json
from collections import Counter
from pathlib import Path

import artent  # noqa: F401  (registers attn_implementation="artent")
import peft
import pytest
import torch
from artent.study.data import byte_tokenizer, collate, load_data
from artent.study.data.corpora import SOURCE_MODULES, source
from artent.study.data.tokens import is_byte_tokenizer
from data_sets import config, llama_tokenizer, tulu, write_lines
from transformers import AutoTokenizer, LlamaConfig, Trainer, TrainingArguments, default_data_collator
from tuned_models import llama, lora


@pytest.fixture(scope="module")
def rows():
    return tulu(60, seed=3)


@pytest.fixture(scope="module")
def path(rows, tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("data") / "rows.jsonl", rows)


def texts_in(row):
    """(ids, labels) of every text of a row, told by where positions begin again; padding is a text of zeros."""
    begins = [*(row["position_ids"] == 0).nonzero().flatten().tolist(), len(row["input_ids"])]
    for first, last in itertools.pairwise(begins):
        assert row["position_ids"][first:last].tolist() == list(range(last - first))
        ids, labels = row["input_ids"][first:last].tolist(), row["labels"][first:last].tolist()
        if any(ids):
            yield tuple(ids), tuple(labels)


def test_packing_keeps_every_text_whole_once_and_leaves_no_two_blocks_that_fit_in_one(path):
    packed, alone = (load_data(config(path, packing=p)) for p in (True, False))
    for blocks, rows in ((packed.train, alone.train), (packed.held_out, alone.held_out)):
        assert {len(value) for block in blocks for value in block.values()} == {256}
        assert Counter(text for block in blocks for text in texts_in(block)) == Counter(
            (tuple(row["input_ids"].tolist()), tuple(row["labels"].tolist())) for row in rows
        )
        filled = sorted(sum(len(ids) for ids, _ in texts_in(block)) for block in blocks)
        assert sum(filled[:2]) > 256
    sizes = sum(len(row["input_ids"]) for row in alone.train)
    assert packed.told["padding"] == pytest.approx(1 - sizes / (256 * len(packed.train)))
    trained = sum(int((row["labels"] >= 0).sum()) for row in alone.train)
    assert packed.told["tokens_trained"] == alone.told["tokens_trained"] == trained
    assert packed.told["tokens"] == alone.told["tokens"] == sizes


def losses(model, batch):
    """Cross-entropy of each labelled token, (texts, T−1), zero where there is none; labels shifted by hand."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    scores = model(**inputs).logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    return -scores.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)


@pytest.mark.parametrize("attention", ["artent", "sdpa"])  # transformers' eager takes its softmax in float32
@torch.no_grad()
def test_the_loss_of_packed_and_of_padded_texts_is_that_of_each_alone(attention, path):
    model = llama(vocab_size=256, hidden_size=32, attn_implementation=attention, use_cache=False)
    packed, alone = (load_data(config(path, packing=p, samples=24)) for p in (True, False))
    expected = {
        tuple(row["input_ids"].tolist()): losses(model, {k: v[None] for k, v in row.items()})[0].tolist()
        for row in alone.train
    }
    batch = default_data_collator(packed.train)
    found = losses(model, batch)
    for block, of_block in zip(packed.train, found):
        at = 0
        for ids, _ in texts_in(block):
            torch.testing.assert_close(of_block[at : at + len(ids) - 1].tolist(), expected[ids], rtol=1e-10, atol=1e-12)
            at += len(ids)
    mean = sum(map(sum, expected.values())) / packed.told["tokens_trained"]
    assert model(**batch).loss.item() == pytest.approx(mean, rel=1e-6)  # transformers' own, which is in float32
    padded = collate(None)(alone.train)
    assert losses(model, padded).sum().item() == pytest.approx(mean * packed.told["tokens_trained"], rel=1e-10)
    del batch["position_ids"]  # what isolates the texts: without it, a neighbour is seen
    assert (losses(model, batch) - found).abs().max() > 1e-3


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_trainer_hands_on_what_isolates_texts(packing, adapted, path, tmp_path):
    corpus = load_data(config(path, packing=packing))
    model = peft.get_peft_model(llama(vocab_size=256), lora()) if adapted else llama(vocab_size=256)
    options = {"use_cpu": True, "report_to": [], "per_device_train_batch_size": 3}
    arguments = TrainingArguments(output_dir=str(tmp_path), **options)
    trainer = Trainer(model=model, args=arguments, train_dataset=corpus.train, data_collator=collate(0))
    batch = next(iter(trainer.get_train_dataloader()))
    kept = "position_ids" if packing else "attention_mask"
    assert set(batch) == {"input_ids", "labels", kept}
    assert model.config.use_cache is False  # with a cache, transformers does not look for packed texts


def sides(corpus, tokenizer):
    return [{tokenizer.decode(row["input_ids"]) for row in rows} for rows in (corpus.train, corpus.held_out)]


def test_rows_of_one_question_are_on_one_side(tmp_path):
    tokenizer, base = byte_tokenizer(), tulu(40, seed=5, turns=1)
    again = json.loads(json.dumps(base[:20]))  # the same questions answered otherwise, as in OpenThoughts3
    for row in again:
        row["messages"][-1]["content"] += " Or not."
    path = write_lines(tmp_path / "rows.jsonl", base + again + base[10:30])
    for seed in range(5):
        corpus = load_data(config(path, packing=False, held_out=0.2, seed=seed), tokenizer)
        train, held_out = ({text.split("[assistant]")[0] for text in side} for side in sides(corpus, tokenizer))
        assert not train & held_out
        assert len(train | held_out) == 40
        assert len(corpus.train) + len(corpus.held_out) == 80
        assert abs(len(corpus.held_out) - 16) <= 2
        assert corpus.told["held_out_rows"] == len(corpus.held_out)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.99])
def test_both_sides_have_rows_whatever_the_share(share, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"text": f"{at} {'x' * at}"} for at in range(10)])
    corpus = load_data(config(path, packing=False, held_out=share))
    assert len(corpus.held_out) == min(max(1, round(10 * share)), 9) == corpus.told["held_out_rows"]
    assert len(corpus.train) + len(corpus.held_out) == 10


def test_the_seed_decides(path):
    same, again, other = (load_data(config(path, samples=30, seed=seed)) for seed in (1, 1, 2))
    assert same.fingerprint == again.fingerprint != other.fingerprint
    for a, b in zip(same.train + same.held_out, again.train + again.held_out, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert same.told == again.told
    assert (same.told["rows_read"], same.told["rows_used"]) == (60, 30)


def test_more_samples_than_rows_takes_all_and_says_so(path):
    told = load_data(config(path, samples=1000)).told
    assert told["rows_used"] == 60
    assert "samples asks for 1,000, more than there are" in told["sentence"]


@pytest.mark.parametrize("packing", [False, True])
def test_the_probe_is_of_held_out_texts_without_padding(packing, path):
    corpus = load_data(config(path, packing=packing, held_out=0.3))
    alone = load_data(config(path, packing=False, held_out=0.3))
    length = sorted(len(row["input_ids"]) for row in alone.held_out)[-5]
    probe = corpus.probe(5, length)
    assert probe.shape == (5, length)
    assert probe.dtype == torch.long
    begins = {tuple(row["input_ids"][:length].tolist()) for row in alone.held_out}
    trained = {tuple(row["input_ids"][:length].tolist()) for row in alone.train}
    chosen = {tuple(text.tolist()) for text in probe}
    assert len(chosen) == 5
    assert chosen <= begins - trained
    with pytest.raises(ValueError, match=rf"60 held-out texts of at least {length} tokens .* Lower measure.texts"):
        corpus.probe(60, length)
    with pytest.raises(ValueError, match=r"has 0 \(of 18 held out; .*data.context"):
        corpus.probe(1, 5000)


def test_plain_text_longer_than_the_context_is_cut_and_loses_nothing(tmp_path):
    texts = [f"{at}: " + "entropy of a cut, " * (3 * at) for at in range(12)]
    path = write_lines(tmp_path / "rows.jsonl", [{"text": text, "meta": 1} for text in texts] + [{"text": None}])
    corpus = load_data(config(path, context=50, packing=False))
    rows = [row["input_ids"] for row in (*corpus.train, *corpus.held_out)]
    pieces = Counter(bytes(ids.tolist()) for ids in rows)
    for text in texts:
        data = text.encode() + b"\0"
        pieces -= Counter(data[at : at + 50] for at in range(0, len(data), 50))
    assert not pieces
    assert sum(map(len, rows)) == sum(len(text.encode()) + 1 for text in texts)
    assert corpus.told["rows_skipped"] == {"no text": 1}
    assert corpus.told["texts_cut"] == sum(len(text) + 1 > 50 for text in texts)
    assert all(row["labels"].tolist() == [-100, *row["input_ids"][1:].tolist()] for row in corpus.train)


def test_plain_text_begins_and_ends_as_the_tokenizer_has_it(tmp_path):
    tokenizer = llama_tokenizer()
    path = write_lines(tmp_path / "rows.jsonl", [{"text": "bond site"}, {"text": "rank cut"}])
    corpus = load_data(config(path, packing=False), tokenizer)
    told = {tokenizer.decode(row["input_ids"]) for row in corpus.train + corpus.held_out}
    assert told == {"<|begin|>bond site<|end|>", "<|begin|>rank cut<|end|>"}


def test_text_that_ships_with_python_is_blocks_of_its_bytes():
    """Against the files themselves, cut and split by hand."""
    files = (importlib.util.find_spec(name).origin for name in SOURCE_MODULES.split())
    data = b"\n\n".join(Path(file).read_bytes() for file in files)
    corpus = load_data(config("python-source", context=1024))
    assert corpus.fingerprint == hashlib.sha256(data).hexdigest()[:16]
    blocks = [data[at : at + 1024] for at in range(0, len(data) - 1023, 1024)]
    for rows, held in ((corpus.train, False), (corpus.held_out, True)):
        expected = [block for at, block in enumerate(blocks) if (at % 20 == 10) == held]
        assert [bytes(row["input_ids"].tolist()) for row in rows] == expected
    assert set(corpus.train[0]) == {"input_ids", "labels"}
    assert torch.equal(corpus.train[0]["labels"][1:], corpus.train[0]["input_ids"][1:])
    assert torch.equal(corpus.probe(3, 40), torch.stack([row["input_ids"][:40] for row in corpus.held_out[:3]]))
    assert load_data(config("python-source", context=1024), byte_tokenizer()).fingerprint == corpus.fingerprint


def test_text_that_ships_with_python_in_the_tokens_of_another_model():
    tokenizer = llama_tokenizer()
    made = source(128, 0.05, tokenizer, modules=["ast", "bisect", "calendar", "copy"])
    read = b"\n\n".join(
        Path(importlib.util.find_spec(name).origin).read_bytes() for name in ("ast", "bisect", "calendar", "copy")
    ).decode()
    first = tokenizer.decode(made.train[0]["input_ids"], clean_up_tokenization_spaces=False)
    assert read.startswith(first)
    assert len(first) > 128


def test_english_lost_its_layout():
    corpus = load_data(config("python-reference", context=64))
    text = b"".join(bytes(row["input_ids"].tolist()) for row in corpus.train).decode(errors="replace")
    assert "\n****" not in text
    assert "\n    " not in text
    assert len(text) > 300_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "python-source", "context": 100_000}, r"context: \d+ bytes of source.* too few to hold out 1 in 20"),
        ({"name": "python-source", "samples": 30}, "of which samples takes 30, too few"),
        ({"name": "python-source", "held_out": 0.8}, "every other block at most"),
        ({"held_out": 0.0}, "data.held_out must be a share"),
        ({"context": 1}, "data.context must be at least 2"),
        ({"context": 100_000}, r"have \d+ tokens together, which do not fill one block of 100000"),
        ({"samples": 1}, "data.samples must be at least 2"),
    ],
)
def test_numbers_that_make_no_corpus(options, words, path):
    with pytest.raises(ValueError, match=words):
        load_data(config(**{"name": path} | options))


def test_a_module_without_source_is_named():
    with pytest.raises(ValueError, match="'no_such_module'"):
        source(64, 0.05, modules=["ast", "no_such_module"])


def test_byte_tokens_survive_saving(tmp_path):
    """Beside a LLaMA's configuration too, which would have AutoTokenizer make a LLaMA's tokenizer of it."""
    text = "".join(map(chr, range(1, 0x250))) + "Ā<0x00> 漢字\r\n\t  ends 🦙"
    made = byte_tokenizer()
    made.chat_template = "{{ messages }}"
    LlamaConfig().save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    for tokenizer in (made, AutoTokenizer.from_pretrained(tmp_path)):
        ids = tokenizer(text)["input_ids"]
        assert ids == list(text.encode())
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert tokenizer("a\0b")["input_ids"] == [97, 0, 98]
        assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 0, 0)
        assert is_byte_tokenizer(tokenizer)
        assert tokenizer.chat_template == "{{ messages }}"
    assert sorted(made.get_vocab().values()) == list(range(256))
    assert not is_byte_tokenizer(llama_tokenizer())
