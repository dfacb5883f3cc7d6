"""The reference of a study's configuration: the sections' own docstrings and defaults, and the files as they stand."""

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path

from artent.study import config
from artent.study.config import Method, StudyConfig, Sweep

FOLDER = Path(config.__file__).parent


def sections():
    """[(name in the file, dataclass)]: the study itself, its sections, a method, a sweep."""
    nested = [(f.name, type(f.default)) for f in fields(StudyConfig) if hasattr(f.default, "__dataclass_fields__")]
    return [("", StudyConfig), *nested, ("methods", Method), ("sweep", Sweep)]


def files():
    return sorted(FOLDER.glob("*.yaml"))


def markdown():
    parts = []
    for name, kind in sections():
        heading = {"": "The study", "methods": "A method: `methods`", "sweep": "A sweep: `sweep`"}.get(
            name, f"`{name}`"
        )
        said = inspect.getdoc(kind)
        parts += [
            f"## {heading}\n",
            said.split("\n\nAttributes:")[0].replace("``", "`") + "\n",
            _table(name, kind, said),
        ]
    if files():
        parts.append("## The configurations\n")
    for path in files():
        parts += [f"### {path.stem}\n", f"```yaml\n{path.read_text(encoding='utf-8')}```\n"]
    return "\n".join(parts)


def described(said):
    """{field: what its docstring says}, of an Attributes section; names that share a line share what it says."""
    found = {}
    attributes = said.partition("Attributes:\n")[2]
    for names, text in re.findall(r"^    ([\w, ]+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE):
        for name in names.split(", "):
            found[name] = " ".join(text.split())
    return found


def _table(name, kind, said):
    """A row a field; fields that share a line of the docstring share a row, and sections have their own tables."""
    told, groups = described(said), {}
    sectioned = {section for section, _ in sections()} - {"methods", "sweep"} if not name else set()
    for f in fields(kind):
        if f.name not in sectioned:
            groups.setdefault(told[f.name], []).append(f)
    lines = ["| key | default | |", "|---|---|---|"]
    for text, group in groups.items():
        keys, defaults = (", ".join(each) for each in zip(*((f"`{f.name}`", _default(f)) for f in group)))
        lines.append(f"| {keys} | {defaults} | {text.replace('``', '`').replace('|', chr(92) + '|').rstrip('.')} |")
    return "\n".join([*lines, ""])


def _default(f):
    if f.default is MISSING:
        return "(needed)"
    value = f.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple) and value and not isinstance(value[0], (int, float, str)):
        return "; ".join(f"`{each.name}`" for each in value)
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"
