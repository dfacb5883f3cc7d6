"""PEFT's ``rank_pattern`` and ``alpha_pattern``: which key is whose, and the keys that say what every module gets.

A key is a regular expression for the end of a module's name, from its start or from a dot on; of several that match,
PEFT takes the first in the dictionary. Saving an adapter sorts the keys, so the keys written here never overlap.
"""

import re
from collections import Counter

from artent.reading.names import compiled


def pattern_of(values):
    """(default, pattern) that give every module in ``values`` its own value, each key matching none of another value.

    A kind of module (the end of a name without layer numbers, such as v_proj) whose modules agree has one key; other
    modules stand with their whole name. The default is the value that saves the most keys, then the most common one,
    then the smallest.
    """
    kinds = {}
    for name in values:
        for ending in _endings(name):
            kinds.setdefault(ending, []).append(name)
    agree = {ending for ending, names in kinds.items() if len(names) > 1 and len({values[n] for n in names}) == 1}
    meant = {}
    for name in values:
        ending = next((ending for ending in _endings(name) if ending in agree), name)
        meant[ending] = kinds[ending] if ending in agree else [name]
    value_of = {ending: values[names[0]] for ending, names in meant.items()}
    keys, modules = Counter(value_of.values()), Counter(values.values())
    default = min(keys, key=lambda value: (-keys[value], -modules[value], value))
    others = {ending: value for ending, value in value_of.items() if value != default}
    return default, {_key(ending, meant[ending], values): value for ending, value in others.items()}


def _endings(name):
    """What a name may share with its like in other layers, the shortest first: v_proj, self_attn.v_proj."""
    parts = name.split(".")
    for start in range(len(parts) - 1, -1, -1):
        if parts[start].isdecimal():
            return
        yield ".".join(parts[start:])


def _key(ending, meant, names):
    """The most readable key that matches ``meant`` alone: a dot means any character, unless it is escaped."""
    last = ending.rpartition(".")[2]
    near = [name for name in names if name.endswith(last)]  # no other can match
    for key in (ending, re.escape(ending)) if re.fullmatch(r"[\w.-]+", ending) else (re.escape(ending),):
        if [name for name in near if compiled(key).match(name)] == meant:
            return key
    return f"^{re.escape(ending)}"  # a whole name that another name ends with
