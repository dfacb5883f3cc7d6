"""Two texts that ship with every Python: its language reference (English) and its standard library (source).

Nothing is downloaded. The bytes differ a little between Python versions, so a text carries its fingerprint, and
numbers are compared only where fingerprints agree.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["SOURCE_MODULES", "Text", "english", "source"]

# Long-lived pure-Python modules: present as source wherever Python is, and of one style of code.
SOURCE_MODULES = (
    "argparse ast base64 bisect calendar collections configparser contextlib copy csv dataclasses datetime "
    "decimal difflib dis enum filecmp fnmatch fractions ftplib functools getopt gettext glob gzip hashlib heapq "
    "hmac inspect ipaddress keyword linecache locale mimetypes netrc numbers operator optparse pickle "
    "pickletools platform plistlib pprint queue random reprlib sched selectors shelve shlex shutil signal "
    "smtplib socket socketserver statistics string stringprep subprocess tarfile tempfile textwrap threading "
    "timeit token tokenize traceback types typing uuid warnings wave weakref zipapp"
)


@dataclass(frozen=True)
class Text:
    """A text as non-overlapping blocks of byte tokens, split once: ``train`` and ``held_out`` (blocks, context)."""

    name: str
    train: torch.Tensor
    held_out: torch.Tensor
    size: int
    fingerprint: str


def english(context, held_out):
    """The prose of Python's language reference (``pydoc_data.topics``), without rulers and indentation."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[key] for key in sorted(topics))
    text = re.sub(r"^[ \t]*[*=~^-]{4,}[ \t]*$", "", text, flags=re.MULTILINE)  # rulers under headings
    text = re.sub(r"^[ \t]+", "", text, flags=re.MULTILINE)  # the margin of the documentation's layout
    text = re.sub(r"\n{3,}", "\n\n", text)
    return _blocks("English: Python's language reference", text.encode(), context, held_out)


def source(context, held_out, modules=None):
    """The source of standard-library modules (None: SOURCE_MODULES), in order. Raises ValueError where one has none."""
    modules = SOURCE_MODULES.split() if modules is None else modules
    return _blocks(
        "source: Python's standard library",
        b"\n\n".join(_module_source(name) for name in modules),
        context,
        held_out,
    )


def _module_source(name):
    spec = importlib.util.find_spec(name)  # finds the file without running the module
    if spec is None or not (spec.origin or "").endswith(".py"):
        raise ValueError(
            f"modules: no Python source for {name!r}; this Python may be stripped of its library's .py files"
        )
    return Path(spec.origin).read_bytes()


def _blocks(name, data, context, held_out):
    """Split into blocks; every k-th block is held out, so both parts span the whole text."""
    count = len(data) // context
    stride = round(1 / held_out)
    if count < 2 * stride:
        raise ValueError(
            f"context: {len(data)} bytes of {name} make {count} blocks of {context}, too few to hold out 1 in {stride}"
        )
    blocks = torch.frombuffer(bytearray(data[: count * context]), dtype=torch.uint8).long().view(count, context)
    out = torch.arange(count) % stride == stride // 2
    return Text(name, blocks[~out], blocks[out], len(data), hashlib.sha256(data).hexdigest()[:16])
