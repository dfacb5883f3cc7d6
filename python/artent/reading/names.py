"""Names of modules, from the keys of weights and of adapters, and what PEFT's patterns say of one."""

import re

ROWS = ".trainable_tokens_delta"  # of PEFT's trainable tokens


def module_name(key):
    """A weight is called by its module; another parameter keeps its own name."""
    return key.removesuffix(".weight")


def plain(name: str) -> str:
    """A module's name in the model that was wrapped."""
    for part in ("_orig_mod.", "base_model.model.", ".token_adapter"):
        name = name.replace(part, "")
    return name


def saved_name(key: str) -> str:
    """The module whose weight, or some of whose rows, an adapter's file holds under that key."""
    return module_name(plain(key)).removesuffix(ROWS)


def lookup(pattern, name: str, default):
    """What ``rank_pattern`` or ``alpha_pattern`` says for a module: of the keys that match PEFT takes the first."""
    return next((value for key, value in (pattern or {}).items() if compiled(key).match(name)), default)


def compiled(key: str) -> re.Pattern:
    """A key of a pattern: a regular expression for the end of a module's name, from its start or from a dot on."""
    return re.compile(rf"(.*\.)?({key})$")
