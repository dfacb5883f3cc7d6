"""The texts of a study: :func:`load_data` makes tokens with labels of a data set, and tells what became of its rows."""

from __future__ import annotations

import functools
import hashlib
import json

import torch

from artent.study.data.blocks import IGNORED, Corpus, collate, fingerprint_of, labelled, pack, split
from artent.study.data.chat import DEFAULT_TEMPLATE, Refused, encode
from artent.study.data.corpora import SHIPPED
from artent.study.data.rows import clean, conversation, open_table, schema_of, take
from artent.study.data.tokens import byte_tokenizer
from artent.study.data.told import tell

__all__ = ["DEFAULT_TEMPLATE", "Corpus", "byte_tokenizer", "collate", "load_data"]

TOGETHER = 512  # rows read and tokenised at a time: whole conversations are many times what is kept of them


def load_data(config, tokenizer=None):
    """The :class:`Corpus` of ``config`` (name, split, samples, context, packing, held_out, seed).

    Args:
        config: ``name`` is python-source or python-reference (texts that ship with Python), tulu3, openthoughts3,
            owner/name of a data set on the hub, a file (.jsonl, .json, .parquet, .arrow, .txt) or a folder of them.
            Its columns are ``messages``, ``conversations``, ``prompt`` and ``completion``, or ``text``.
        tokenizer: a fast tokenizer of transformers; None for the tokens of the small model, which are bytes.

    Conversations go through the tokenizer's chat template (DEFAULT_TEMPLATE where it has none) with the loss on what
    the assistant said, and are cut to ``context`` tokens; longer plain text becomes several texts. ``held_out`` is a
    share of rows, split before anything is packed, rows of one question (or one text) on one side. The same ``seed``
    gives the same corpus.

    Raises:
        ValueError: rows, columns or numbers that no corpus can be made of; the message names the key and the row.
        FileNotFoundError, ConnectionError, ImportError: the data set cannot be had.
    """
    if not 0 < config.held_out < 1:
        raise ValueError(f"data.held_out must be a share between 0 and 1, but it is {config.held_out}")
    if config.context < 2:
        raise ValueError(f"data.context must be at least 2 tokens, but it is {config.context}")
    if config.name in SHIPPED:
        return SHIPPED[config.name](config.context, config.held_out, tokenizer, config.samples)
    tokenizer = byte_tokenizer() if tokenizer is None else tokenizer
    table = open_table(config)
    order = take(table, config.name, config.samples, config.seed)
    schema = schema_of(table.columns, config.name)
    texts, indices = _Texts(config, tokenizer), sorted(order)
    for first in range(0, len(indices), TOGETHER):
        part = indices[first : first + TOGETHER]
        read = texts.plain if schema == ("text",) else functools.partial(texts.chats, schema=schema)
        read(part, table.rows(part), [table.where(index) for index in part])
    return texts.corpus(order, len(table))


class _Texts:
    """Texts on their way from rows to a corpus, and the counts of what was lost on it."""

    def __init__(self, config, tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.kept = {}  # index of a row of the data set: (key, rows of its texts)
        self.skipped, self.counts = {}, dict.fromkeys(("left_out", "truncated", "cut", "lost"), 0)

    def chats(self, indices, rows, places, schema):
        """Conversations: the answers are trained on, and what is beyond ``context`` is lost."""
        conversations = []
        for index, row, place in zip(indices, rows, places):
            messages, left_out = conversation(row, schema, place)
            self.counts["left_out"] += left_out
            if messages:
                conversations.append((index, messages, place))
            else:
                self._skip("no answer")
        encoded = encode(*list(zip(*conversations))[1:], self.tokenizer) if conversations else ()
        for (index, messages, _), found in zip(conversations, encoded):
            if isinstance(found, Refused):
                self._skip(f"refused by the chat template: {found}")
                continue
            row = labelled(*(part[: self.config.context].clone() for part in found))  # a view would keep the whole
            if (row["labels"] == IGNORED).all():
                self._skip("no answer within the context")
                continue
            self.counts["truncated"] += len(found[0]) > self.config.context
            self.counts["lost"] += len(found[0]) - len(row["input_ids"])
            self.kept[index] = (_question(messages), [row])

    def plain(self, indices, rows, places):
        """Plain texts: every token is trained on; a text longer than ``context`` becomes several."""
        for index, row, place in zip(indices, rows, places):
            if "text" not in row:
                raise ValueError(f"data.name: {place} has no 'text'; it has {', '.join(row)}")
            text = row["text"]
            if not isinstance(text, str | None):
                kind = type(text).__name__
                raise ValueError(f"data.name: 'text' of {place} must be a string, but it is of type {kind}")
            text = clean(text or "")
            ids = self.tokenizer(text, verbose=False)["input_ids"] if text.strip() else []
            end = self.tokenizer.eos_token_id
            ids = torch.tensor(ids if end is None or ids[-1:] == [end] else [*ids, end])
            pieces = [labelled(piece) for piece in ids.split(self.config.context) if len(piece) > 1]
            if not pieces:
                self._skip("no text")
                continue
            self.counts["cut"] += len(pieces) > 1
            self.kept[index] = (_digest(text), pieces)

    def corpus(self, order, read):
        """The split of the rows, in ``order`` of their indices, packed where the configuration says so."""
        config, name = self.config, self.config.name
        if not self.kept:
            raise ValueError(f"data.name: no row of {name} can be used: {_told(self.skipped)}")
        kept = [self.kept[index] for index in order if index in self.kept]
        out = split([key for key, _ in kept], config.held_out, config.seed, name)
        train = [row for at, (_, rows) in enumerate(kept) if at not in out for row in rows]
        held_out = [row for at, (_, rows) in enumerate(kept) if at in out for row in rows]
        texts, padding = tuple(row["input_ids"] for row in held_out), 0
        if config.packing:
            size = sum(len(row["input_ids"]) for row in train)
            if size < config.context:
                raise ValueError(
                    f"data.context: all texts of {name} to train on have {size} tokens together, which do not fill one "
                    f"block of {config.context}. Lower data.context, raise data.samples, or set data.packing to false"
                )
            train, held_out = (pack(rows, config.context, self._pad(), config.seed) for rows in (train, held_out))
            padding = len(train) * config.context - size
        told = tell(
            train,
            name=name,
            read=read,
            used=len(kept),
            held_out=len(out),
            wanted=config.samples,
            skipped=self.skipped,
            padding=padding,
            **self.counts,
        )
        return Corpus(name, train, held_out, told, fingerprint_of(train, held_out), texts)

    def _pad(self):
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(i for i in ids if i is not None)

    def _skip(self, why):
        self.skipped[why] = self.skipped.get(why, 0) + 1


def _question(messages):
    """What rows have in common that must not be on both sides: all that is said before the first answer."""
    first = next(at for at, message in enumerate(messages) if message["role"] == "assistant")
    return _digest(json.dumps(messages[:first]))


def _digest(text):
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _told(skipped):
    return ", ".join(f"{rows} skipped ({why})" for why, rows in skipped.items())
