"""Configurations from YAML files and from ``key=value`` changes, with messages that name the key."""

from __future__ import annotations

import difflib
import re
import types
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Union, get_args, get_origin, get_type_hints

from artent.study.config.methods import Method, Sweep
from artent.study.config.schema import SECTIONS, StudyConfig

__all__ = ["as_config", "config_names", "described", "named_config", "override"]

_FOLDER = files("artent.study") / "config"
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def config_names():
    """The configurations that come with artent, the default first."""
    names = sorted(f.name.removesuffix(".yaml") for f in _FOLDER.iterdir() if f.name.endswith(".yaml"))
    return sorted(names, key=lambda name: name != "quick")


def described(name):
    """The first sentence of what the file of a configuration says about it."""
    lines = (_FOLDER / f"{name}.yaml").read_text("utf-8").splitlines()
    words = " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))
    return re.split(r"(?<=\.)\s", words, maxsplit=1)[0]


def named_config(name):
    """The configuration called ``name``, or the one in a YAML file of that path.

    A file may hold a part of the sections, over the defaults or over the configuration that its key ``extends``
    names. Raises ValueError for what is neither, and for what ``as_config`` refuses; FileNotFoundError.
    """
    return as_config(_values(str(name)), where=str(name))


def as_config(values, where="config"):
    """The ``StudyConfig`` of nested dictionaries, as YAML and ``to_dict`` give them.

    Raises ValueError that names the key: unknown, of a wrong type, or of a value that a section refuses.
    """
    return _build(StudyConfig, values, where, "")


def override(config, assignments):
    """A copy with ``section.key=value`` strings applied; values are read as YAML, ``1,2,3`` is a list.

    The section may be left out where one section alone has the key. ``methods=full-ft,lora-r16`` keeps those methods
    and what is swept of them. Raises ValueError for an unknown key or an unreadable value.
    """
    values = config.to_dict()
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set wants key=value, such as training.steps=100; it got {assignment!r}")
        path = _path(key.strip())
        at = values
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = _read(key, text)
        if path == ["methods"] and (chosen := _chosen(config, values["methods"])) is not None:
            names, values["methods"] = {"*", *chosen}, list(chosen.values())
            values["sweep"] = [sweep for sweep in values["sweep"] if sweep["of"] in names]
    return as_config(values, where="--set")


def _values(name, extended=()):
    """The sections of a configuration, over those of what it extends; ``extended``: who led here."""
    yaml, path = _yaml(), Path(name).expanduser()
    if name in extended:
        raise ValueError(f"--config {extended[0]}: it extends itself, by {' → '.join((*extended, name))}")
    if name in config_names():
        text, where = (_FOLDER / f"{name}.yaml").read_text("utf-8"), name
    elif path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise FileNotFoundError(f"--config: there is no file {name}")
        try:
            text, where = path.read_text("utf-8"), path.stem
        except UnicodeDecodeError as error:
            raise ValueError(f"--config {name}: not readable as YAML: it is not UTF-8 ({error})") from None
    else:
        near = difflib.get_close_matches(name, config_names(), 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"--config must be one of {', '.join(config_names())}, or a .yaml file, but it is {name!r}{hint}"
        )
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"--config {name}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {name}: expected sections such as model: and data:, but it is {values!r:.60}")
    base = values.pop("extends", None)
    if base is not None:
        beside = path.parent / str(base)
        base = str(beside) if beside.is_file() and beside.suffix else str(base)
        values = _merged(_values(base, (*extended, name)), values)
    return {**values, "name": values.get("name", where) if base is None else where}


def _merged(base, over):
    return {
        **base,
        **{
            k: _merged(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v
            for k, v in over.items()
        },
    }


def _build(kind, values, where, at):
    """An instance of the dataclass ``kind``; ``at`` is the key that leads to it, for messages."""
    told = f"{where}: " + (f"{at}: " if at else "")
    if not isinstance(values, dict):
        raise ValueError(f"{told}expected {', '.join(f.name for f in fields(kind))}, but it is {values!r:.60}")
    hints, known = get_type_hints(kind), [f.name for f in fields(kind)]
    if unknown := [key for key in values if key not in known]:
        near = difflib.get_close_matches(str(unknown[0]), known, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{told}unknown key {unknown[0]!r}{hint}; there are {', '.join(known)}")
    given = {key: _as(hints[key], value, f"{told}{key}", where) for key, value in values.items()}
    try:
        return kind(**given)
    except TypeError as error:
        missing = re.findall(r"'(\w+)'", str(error))
        raise ValueError(f"{told}{', '.join(missing)} must be given") from None
    except ValueError as error:
        raise ValueError(f"{told}{error}") from None


def _as(kind, value, told, where):
    """``value`` as the annotated type: whole numbers are numbers, lists are tuples, a lone value is a list of one."""
    if kind in SECTIONS.values() or kind in (Method, Sweep):
        return _build(kind, value, where, told.removeprefix(f"{where}: "))
    options = get_args(kind) if get_origin(kind) in (types.UnionType, Union) else (kind,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if get_origin(option) is tuple:
            items = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
            return tuple(_as(get_args(option)[0], item, f"{told}[{i}]", where) for i, item in enumerate(items))
        if option is not type(None) and (found := _plain(option, value)) is not None:
            return found
    words = " or ".join("none" if option is type(None) else _WORDS[option] for option in options)
    raise ValueError(f"{told} must be {words}, but it is {value!r}")


def _plain(kind, value):
    """``value`` as bool, int, float or str; None where it is something else. YAML 1.1 reads 1e-3 as a word."""
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if kind is str:
        return value if isinstance(value, str) else None
    try:
        number = float(value) if isinstance(value, (int, float, str)) else None
    except ValueError:
        return None
    if kind is int and number is not None:
        return int(number) if number.is_integer() else None
    return number


def _path(key):
    if "." in key:
        section, name = key.split(".", 1)
        if section in SECTIONS and name in {f.name for f in fields(SECTIONS[section])}:
            return [section, name]
    top = [f.name for f in fields(StudyConfig) if f.name not in SECTIONS and f.name != "name"]
    if key in top:
        return [key]
    having = [section for section, kind in SECTIONS.items() if key in {f.name for f in fields(kind)}]
    if len(having) == 1:
        return [having[0], key]
    every = top + [f"{section}.{f.name}" for section, kind in SECTIONS.items() for f in fields(kind)]
    if having:
        raise ValueError(f"--set {key}: say which, {' or '.join(f'{section}.{key}' for section in having)}")
    near = difflib.get_close_matches(key, [*every, *(name.split(".")[-1] for name in every)], 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(f"--set: unknown key {key!r}{hint}; there are {', '.join(every)}")


def _read(key, text):
    yaml = _yaml()
    try:
        return (
            yaml.safe_load(f"[{text}]")
            if "," in text and not text.lstrip().startswith(("[", "{"))
            else yaml.safe_load(text)
        )
    except yaml.YAMLError:
        raise ValueError(f"--set {key}: {text!r} is not readable as YAML") from None


def _chosen(config, values):
    """{name: values} of methods that are named, out of the configuration's own; None where they are given whole."""
    names = [values] if isinstance(values, str) else values
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    have = {m.name: values for m, values in zip(config.methods, config.to_dict()["methods"])}
    if missing := [name for name in names if name not in have]:
        raise ValueError(f"--set methods: {config.name} has {', '.join(have)}, not {', '.join(missing)}")
    return {name: have[name] for name in names}


def _yaml():
    try:
        import yaml
    except ImportError as error:
        raise ImportError("configurations are YAML files: pip install 'artent[study]'") from error
    return yaml
