"""Rows of a data set by its name, and what their columns mean: conversations, or plain text."""

from __future__ import annotations

import difflib
import random
from pathlib import Path

from artent.study.data.files import KINDS, ArrowTable, missing, open_files

__all__ = ["SHORT", "clean", "conversation", "open_table", "schema_of", "take"]

SHORT = {"tulu3": "allenai/tulu-3-sft-mixture", "openthoughts3": "open-thoughts/OpenThoughts3-1.2M"}
OURS = ("python-source", "python-reference")

ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(
        ("tool", "function", "observation", "tool_call", "function_call", "tool_response", "ipython"), None
    ),
}
SPEAKERS = (("role", "content"), ("from", "value"))
SCHEMAS = (("messages",), ("conversations",), ("prompt", "completion"), ("text",))
EXPECTED = (
    "messages (a list of role and content), conversations (a list of from and value), prompt and completion, or text"
)


def open_table(config):
    """The table of ``config.name``: a file, a folder, what ``datasets`` saved in a folder, or a data set on the hub.

    Raises FileNotFoundError, ValueError, ImportError, ConnectionError (the hub cannot be reached), each naming
    ``data.name``.
    """
    name = SHORT.get(config.name, config.name)
    path = Path(name).expanduser()
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        return _saved(path, config.split)
    looks_local = path.suffix.lower() in KINDS or path.is_absolute() or name.startswith((".", "~"))
    if path.exists() or looks_local or name.count("/") > 1:
        return open_files(path, config.split, 4 * config.context)
    return _hub(name, config.split)


def take(table, name, samples, seed):
    """Indices of ``samples`` rows of ``table`` (None, or more than there are: all), in an order of ``seed``."""
    if not len(table):
        raise ValueError(f"data.name: {name} is empty: it has no rows")
    if samples is not None and samples < 2:
        raise ValueError(f"data.samples must be at least 2 (one row is held out), but it is {samples}")
    count = len(table) if samples is None else min(samples, len(table))
    return random.Random(seed).sample(range(len(table)), count)


def schema_of(columns, name):
    """The columns that make the texts, one of SCHEMAS. Raises ValueError that lists the columns there are."""
    for schema in SCHEMAS:
        if set(schema) <= set(columns):
            return schema
    raise ValueError(f"data.name: {name} has the columns {', '.join(columns) or '(none)'}; expected {EXPECTED}")


def conversation(row, schema, where):
    """([{"role", "content"}], messages left out) of a row: roles user, assistant, system; every content a string.

    Left out are messages without content, those of tools, answers before any question and what follows the last
    answer: nothing is learned from them. Raises ValueError, naming ``where``, for what is not a conversation.
    """
    messages = [_message(message, where) for message in _messages(row, schema, where)]
    kept = [m for m in messages if m["role"] is not None and m["content"].strip()]
    while kept and kept[-1]["role"] != "assistant":
        kept.pop()
    asked = next((at for at, m in enumerate(kept) if m["role"] == "user"), len(kept))
    kept = [m for at, m in enumerate(kept) if at >= asked or m["role"] == "system"]
    return kept, len(messages) - len(kept)


def _messages(row, schema, where):
    for column in schema:
        if column not in row:
            raise ValueError(f"data.name: {where} has no {column!r}; it has {', '.join(row)}")
    if schema == ("prompt", "completion"):
        speakers = (("prompt", "user"), ("completion", "assistant"))
        parts = [row[c] if isinstance(row[c], list) else [{"role": role, "content": row[c]}] for c, role in speakers]
        return parts[0] + parts[1]
    (column,) = schema
    if row[column] is None:
        return []
    if not isinstance(row[column], list):
        raise ValueError(
            f"data.name: {column!r} of {where} must be a list of messages, but it is of type {_type(row[column])}"
        )
    return row[column]


def _message(message, where):
    if not isinstance(message, dict):
        raise ValueError(f"data.name: a message of {where} must have role and content, but it is {message!r:.60}")
    pair = next((pair for pair in SPEAKERS if message.get(pair[0]) is not None), None)
    if pair is None:
        raise ValueError(
            f"data.name: a message of {where} has the keys {', '.join(message)}; expected role and content, or from "
            "and value"
        )
    role, content = message[pair[0]], message.get(pair[1])
    role = role.lower() if isinstance(role, str) else repr(role)
    if role not in ROLES:
        raise ValueError(f"data.name: unknown role {role!r} in {where}; known are {', '.join(ROLES)}")
    if ROLES[role] is not None and not isinstance(content, str | None):
        raise ValueError(
            f"data.name: {pair[1]!r} of a message of {where} must be a string, but it is of type {_type(content)}"
        )
    return {"role": ROLES[role], "content": clean(content) if isinstance(content, str) else ""}


def clean(text):
    """``text`` as tokenizers take it: half a surrogate pair, which JSON can spell, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _type(value):
    return type(value).__name__


def _saved(path, split):
    """What ``save_to_disk`` of the datasets library wrote: one data set, or one for each split."""
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError:
        raise missing("datasets", f"{path}") from None
    try:
        found = load_from_disk(str(path))
    except Exception as fault:  # of many libraries
        raise ValueError(f"data.name: the data set saved in {path} cannot be read: {fault}") from fault
    if isinstance(found, DatasetDict):
        return ArrowTable(path, _of_split(found, split, path))
    return ArrowTable(path, found)


def _of_split(found, split, name):
    if split not in found:
        raise ValueError(f"data.split: {name} has no split {split!r}; it has {', '.join(found)}")
    return found[split]


def _hub(name, split):
    known = (*OURS, *SHORT)
    if name.count("/") != 1:
        near = difflib.get_close_matches(name, known, 1)
        raise ValueError(
            f"data.name: {name!r} is no file, folder or known name ({', '.join(known)}), and a data set on the hub is "
            "named owner/name" + (f". Did you mean {near[0]}?" if near else "")
        )
    try:
        import datasets
    except ImportError:
        raise missing("datasets", f"{name} from the hub") from None
    try:
        return ArrowTable(name, datasets.load_dataset(name, split=split))
    except Exception as fault:  # of many libraries: the hub's, requests', datasets' own
        if isinstance(fault, ValueError) and "split" in str(fault).lower():
            raise ValueError(f"data.split: {name} has no split {split!r}: {fault}") from fault
        raise ConnectionError(
            f"data.name: {name} cannot be had from the hub ({type(fault).__name__}: {fault}). Check the name and the "
            "network; where there is none, download the data set elsewhere and give its folder or file"
        ) from fault
