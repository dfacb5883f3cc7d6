"""Two texts that ship with every Python: its language reference (English) and its standard library (source).

Nothing is downloaded. The bytes differ a little between Python versions, so a text carries its fingerprint, and
numbers are compared only where fingerprints agree.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

import torch

from artent.study.data.blocks import Corpus, labelled
from artent.study.data.tokens import is_byte_tokenizer
from artent.study.data.told import tell

__all__ = ["SHIPPED", "SOURCE_MODULES", "english", "source"]

# Long-lived pure-Python modules: present as source wherever Python is, and of one style of code.
SOURCE_MODULES = (
    "argparse ast base64 bisect calendar collections configparser contextlib copy csv dataclasses datetime "
    "decimal difflib dis enum filecmp fnmatch fractions ftplib functools getopt gettext glob gzip hashlib heapq "
    "hmac inspect ipaddress keyword linecache locale mimetypes netrc numbers operator optparse pickle "
    "pickletools platform plistlib pprint queue random reprlib sched selectors shelve shlex shutil signal "
    "smtplib socket socketserver statistics string stringprep subprocess tarfile tempfile textwrap threading "
    "timeit token tokenize traceback types typing uuid warnings wave weakref zipapp"
)


def english(context, held_out, tokenizer=None, samples=None):
    """The prose of Python's language reference (``pydoc_data.topics``), without rulers and indentation."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[key] for key in sorted(topics))
    text = re.sub(r"^[ \t]*[*=~^-]{4,}[ \t]*$", "", text, flags=re.MULTILINE)  # rulers under headings
    text = re.sub(r"^[ \t]+", "", text, flags=re.MULTILINE)  # the margin of the documentation's layout
    text = re.sub(r"\n{3,}", "\n\n", text)
    return _blocks("English: Python's language reference", text.encode(), context, held_out, tokenizer, samples)


def source(context, held_out, tokenizer=None, samples=None, modules=None):
    """The source of standard-library modules (None: SOURCE_MODULES), in order. Raises ValueError where one has none."""
    modules = SOURCE_MODULES.split() if modules is None else modules
    data = b"\n\n".join(_module_source(name) for name in modules)
    return _blocks("source: Python's standard library", data, context, held_out, tokenizer, samples)


SHIPPED = {"python-source": source, "python-reference": english}


def _module_source(name):
    spec = importlib.util.find_spec(name)  # finds the file without running the module
    if spec is None or not (spec.origin or "").endswith(".py"):
        raise ValueError(
            f"modules: no Python source for {name!r}; this Python may be stripped of its library's .py files"
        )
    return Path(spec.origin).read_bytes()


def _blocks(name, data, context, held_out, tokenizer, samples):
    """Non-overlapping blocks of ``context`` tokens; every k-th is held out, so both parts span the whole text.

    Tokens are bytes unless ``tokenizer`` makes others. ``samples``: so many blocks from the beginning (None: all).
    """
    if tokenizer is None or is_byte_tokenizer(tokenizer):
        tokens = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
        unit, fingerprint = "bytes", hashlib.sha256(data).hexdigest()[:16]
    else:
        ids = tokenizer(data.decode(errors="replace"), add_special_tokens=False, verbose=False)["input_ids"]
        tokens = torch.tensor(ids)
        unit, fingerprint = "tokens", hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:16]
    there = len(tokens) // context
    count = there if samples is None else min(samples, there)
    stride = round(1 / held_out)
    if stride < 2:
        raise ValueError(f"data.held_out: every other block at most is held out of {name}, but it is {held_out}")
    if count < 2 * stride:
        size = f"{len(tokens)} {unit} of {name} make {there} blocks of {context}"
        taken = size if count == there else f"{size}, of which samples takes {count}"
        raise ValueError(f"context: {taken}, too few to hold out 1 in {stride}")
    blocks = tokens[: count * context].view(count, context)
    out = torch.arange(count) % stride == stride // 2
    rows = [labelled(block) for block in blocks]
    train = [row for row, is_out in zip(rows, out.tolist()) if not is_out]
    kept = [row for row, is_out in zip(rows, out.tolist()) if is_out]
    told = tell(
        train, name=name, read=there, used=count, wanted=samples, held_out=len(kept), lost=len(tokens) - there * context
    )
    return Corpus(name, train, kept, told, fingerprint, tuple(row["input_ids"] for row in kept))
