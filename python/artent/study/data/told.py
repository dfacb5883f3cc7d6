"""What became of a data set's rows: the counts of the setup record, and the sentence that tells them."""

from __future__ import annotations

from artent.study.data.blocks import IGNORED

__all__ = ["tell"]


def tell(
    train, *, name, read, used, held_out, wanted=None, skipped=None, left_out=0, truncated=0, cut=0, lost=0, padding=0
):
    """The counts of a corpus whose training rows are ``train``, with their ``sentence``.

    ``read``: rows that the data set has; ``wanted``: how many were asked for (None: all); ``used``: rows that became
    texts, ``held_out`` of them held out; ``skipped``: {why: rows}; ``left_out``: messages of conversations;
    ``truncated`` texts and their ``lost`` tokens; ``cut``: texts that became several, whole; ``padding``: tokens of
    ``train`` that are none.
    """
    positions = sum(len(row["input_ids"]) for row in train)
    trained = sum(int((row["labels"] != IGNORED).sum()) for row in train)
    counts = {
        "rows_read": read,
        "rows_used": used,
        "rows_skipped": dict(skipped or {}),
        "held_out_rows": held_out,
        "messages_left_out": left_out,
        "texts_truncated": truncated,
        "texts_cut": cut,
        "tokens_lost": lost,
        "sequences": len(train),
        "tokens": positions - padding,
        "tokens_trained": trained,
        "padding": padding / positions if positions else 0.0,
    }
    return {**counts, "sentence": _sentence(counts, name, wanted)}


def _sentence(counts, name, wanted):
    told = [f"{name}: {counts['rows_used']:,} of {counts['rows_read']:,} rows"]
    if wanted is not None and wanted > counts["rows_read"]:
        told[0] += f" (samples asks for {wanted:,}, more than there are)"
    told += [f"{rows:,} skipped ({why})" for why, rows in counts["rows_skipped"].items()]
    told.append(f"{counts['held_out_rows']:,} held out")
    if counts["messages_left_out"]:
        told.append(f"{counts['messages_left_out']:,} messages left out (empty, of tools, or unanswered)")
    if counts["texts_truncated"]:
        told.append(f"{counts['texts_truncated']:,} truncated, losing {counts['tokens_lost']:,} tokens")
    if counts["texts_cut"]:
        told.append(f"{counts['texts_cut']:,} cut into several, losing nothing")
    told.append(
        f"{counts['tokens_trained']:,} of {counts['tokens']:,} tokens in {counts['sequences']:,} sequences trained on"
    )
    if counts["padding"]:
        told.append(f"{counts['padding']:.1%} padding")
    return ", ".join(told)
