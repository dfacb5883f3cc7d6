"""Texts of the study as tensors: labels, the split, packing, padding, and the counts that go into the records."""

from __future__ import annotations

import bisect
import hashlib
import random
from dataclasses import dataclass, field

import torch

__all__ = ["IGNORED", "Corpus", "collate", "fingerprint_of", "labelled", "pack", "split"]

IGNORED = -100  # a label that the loss leaves out


@dataclass(frozen=True, eq=False)
class Corpus:
    """What a model is trained on and judged by.

    ``train``, ``held_out``: rows of 1-d long tensors ``input_ids``, ``labels`` (−100 where there is no loss) and,
    where texts share a row, ``position_ids``, which begin again at each. Blocks are of equal length and go to Trainer
    as they are; rows of unequal length need :func:`collate`. ``told``: counts for the records, and a ``sentence``.
    ``texts``: the held-out texts one by one, without padding, for :meth:`probe`.
    """

    name: str
    train: list
    held_out: list
    told: dict
    fingerprint: str
    texts: tuple = field(repr=False)

    def probe(self, texts, length):
        """(texts, length) tokens: the beginnings of distinct held-out texts that are at least so long, unpadded.

        Raises ValueError where there are fewer: attention over padding or over a neighbour's text is no measurement.
        """
        found = {}
        for ids in self.texts:
            if len(ids) >= length:
                found.setdefault(tuple(ids[:length].tolist()), ids[:length])
            if len(found) == texts:
                break
        if len(found) < texts:
            longest = max((len(ids) for ids in self.texts), default=0)
            raise ValueError(
                f"probe: {texts} held-out texts of at least {length} tokens are needed, but {self.name} has "
                f"{len(found)} (of {len(self.texts)} held out; the longest has {longest} tokens). "
                "Lower measure.texts or the longest of measure.lengths, or raise data.samples or data.held_out"
                + (", or data.context, to which texts are cut" if length > longest else "")
            )
        return torch.stack(list(found.values()))


def labelled(ids, trained=None):
    """A row of one text: ``ids`` (T) and its labels, the tokens themselves where ``trained`` (T) says so (None: all).

    The first token has no label: nothing comes before it to tell it from. Models shift labels and so never use it
    where a text stands alone, but in a packed row its neighbour would be made to guess it.
    """
    labels = ids.clone() if trained is None else torch.where(trained, ids, IGNORED)
    labels[:1] = IGNORED
    return {"input_ids": ids, "labels": labels}


def split(keys, share, seed, name):
    """Which rows are held out: a set of indices, of ``share`` of the rows to within one group of equal ``keys``.

    Rows with an equal key (duplicates, or several answers to one question) go to the same side. Raises ValueError
    where a side would be empty.
    """
    if not 0 < share < 1:
        raise ValueError(f"data.held_out must be a share between 0 and 1, but it is {share}")
    groups = {}
    for at, key in enumerate(keys):
        groups.setdefault(key, []).append(at)
    if len(groups) < 2:
        raise ValueError(
            f"data.held_out: {name} has {len(keys)} usable rows, {len(groups)} of them distinct, but one to train "
            "on and one to hold out are needed. Raise data.samples, or give more text"
        )
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    wanted, out = min(max(1, round(share * len(keys))), len(keys) - 1), []
    for group in order:
        if len(out) + len(group) <= wanted:
            out += group
    return set(out or min(order, key=len))


def pack(rows, context, pad, seed):
    """Rows of exactly ``context`` tokens, each of several whole texts: best fit, the longest first, the rest padded.

    ``position_ids`` begin again at every text, by which transformers (given no attention mask) keeps attention within
    a text, and each text is placed as if it were alone. Padding is a text of its own without labels. Raises
    ValueError for a text longer than ``context``.
    """
    bins, spaces = [], []  # spaces: sorted (free tokens, bin)
    for at in sorted(range(len(rows)), key=lambda at: (-len(rows[at]["input_ids"]), at)):
        length = len(rows[at]["input_ids"])
        if length > context:
            raise ValueError(f"context: a text of {length} tokens does not fit in a block of {context}")
        best = bisect.bisect_left(spaces, (length, -1))
        free, into = spaces.pop(best) if best < len(spaces) else (context, len(bins))
        if into == len(bins):
            bins.append([])
        bins[into].append(rows[at])
        if free > length:
            bisect.insort(spaces, (free - length, into))
    random.Random(seed).shuffle(bins)  # else the first blocks would hold the longest texts
    return [_block(texts, context, pad) for texts in bins]


def _block(texts, context, pad):
    lengths = [len(row["input_ids"]) for row in texts]
    rest = context - sum(lengths)
    filling = torch.full((rest,), pad)
    return {
        "input_ids": torch.cat([*(row["input_ids"] for row in texts), filling]),
        "labels": torch.cat([*(row["labels"] for row in texts), torch.full((rest,), IGNORED)]),
        "position_ids": torch.cat([torch.arange(length) for length in (*lengths, rest)]),
    }


def collate(pad_id):
    """A data collator for rows of unequal length: padded on the right with ``pad_id`` (None: 0), and a mask (texts, T).

    Rows that are packed (they have ``position_ids``) are stacked and get no mask, by which transformers would take
    them for one text each.
    """
    pads = {"input_ids": 0 if pad_id is None else pad_id, "labels": IGNORED}

    def collated(rows):
        if "position_ids" in rows[0]:
            return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        stacked = {
            key: torch.nn.utils.rnn.pad_sequence([row[key] for row in rows], batch_first=True, padding_value=pad)
            for key, pad in pads.items()
        }
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        mask = torch.arange(stacked["input_ids"].shape[1]) < lengths[:, None]
        return {**stacked, "attention_mask": mask.long()}

    return collated


def fingerprint_of(*parts):
    """16 hex digits of the tokens and labels of rows, in order; ``parts`` are kept apart."""
    digest = hashlib.sha256()
    for rows in parts:
        for row in rows:
            for key in ("input_ids", "labels"):
                digest.update(row[key].numpy().tobytes())
            digest.update(b"/")
        digest.update(b"//")
    return digest.hexdigest()[:16]
