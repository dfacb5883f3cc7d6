"""From Markdown as it stands in docs/ to what Sphinx reads: generated parts, files of the repository, dark figures."""

import importlib
import inspect
import posixpath
import re
from pathlib import Path

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent

# Files outside docs/ that are pages of the site: a page holds `<!-- file: CHANGELOG.md -->` and shows the file.
SHOWN = {
    "CHANGELOG.md": "project/changelog",
    "CONTRIBUTING.md": "project/contributing",
    "benchmarks/results/README.md": "project/results",
    "tests/simt/README.md": "project/simulated-gpu",
    "README.md": "index",
}
# Named in docstrings, but no part of the API pages.
NOT_PUBLIC = [(r"py:.*", r"artent\.(updates\.Update|reading\..*|schmidt\..*|adapters\.mps\.model\..*)")]

GENERATED = re.compile(r"^<!-- generated: (\w+)(?: (.+?))? -->$", re.MULTILINE)
FILE = re.compile(r"^<!-- file: (\S+) -->$", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]\[]+)\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
FIGURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]*figures/[\w-]+)\.svg\)")


def fill(app, docname, source):
    """Sphinx's ``source-read``: the text of a page, made whole."""
    source[0] = filled(docname, source[0])


def docstring(app, what, name, obj, options, lines):
    """Sphinx's ``autodoc-process-docstring``: what a docstring names becomes a link."""
    text = "\n".join(lines)
    if what == "property":  # napoleon takes "A: b" for a type and its meaning
        text = inspect.getdoc(obj) or ""
    text = re.sub(r"(?<![`/])(docs/math\.md(?: §\d)?)", r":doc:`\1 </math>`", text)
    text = re.sub(r"``(artent(?:_ext)?)\.(\w+)(\(\))?``", _public, text)
    text = re.sub(r"(?:^:(?:ivar|vartype) .*\n(?:^ +\S.*\n)*)+", _attributes, text + "\n", flags=re.MULTILINE)
    if what == "class" and ":Attributes:" not in text and (told := field_comments(obj)):
        text += "\n:Attributes:\n" + "".join(f"    * **{name}** -- {said}\n" for name, said in told.items())
    lines[:] = text.split("\n")


def field_comments(kind):
    """{field: the comment beside it} of a class whose fields are told so."""
    return dict(re.findall(r"^    (\w+): [^#\n]+  # (.+)", inspect.getsource(kind), re.MULTILINE))


def _attributes(found):
    """The attributes as a list under one heading, names that share a line together; types are in the signature."""
    items = re.sub(r"^:vartype .*\n", "", found[0], flags=re.MULTILINE)
    items = re.sub(r"^:ivar ([^:]+): *", r"* **\1** -- ", items, flags=re.MULTILINE)
    items = re.sub(r"^ +", "  ", items, flags=re.MULTILINE)
    return items and ":Attributes:\n" + re.sub(r"^", "    ", items.rstrip("\n"), flags=re.MULTILINE) + "\n\n"


def _public(found):
    package, name = found[1], found[2]
    public = set(importlib.import_module(package).__all__) - {"plots", "theory", "reference", "__version__"}
    return f":py:obj:`{package}.{name}`" if name in public else found[0]


def filled(docname, text):
    """The Markdown of the page ``docname`` with what it asks for put in, and links that hold on the site."""
    origin = f"docs/{docname}.md"
    if shown := FILE.search(text):
        origin = shown[1]
        text = FILE.sub(lambda _: (ROOT / origin).read_text(encoding="utf-8"), text)
    text = GENERATED.sub(lambda found: generated(found[1], found[2]), text)
    text = outside_code(text, lambda part: LINK.sub(lambda found: _link(docname, origin, *found.groups()), part))
    return FIGURE.sub(r"![\1](\2.svg){.only-light}![\1](\2-dark.svg){.only-dark}", text)


def generated(what, of=None):
    """The Markdown that ``<!-- generated: what of -->`` stands for: ``generate/what.py``, ``markdown(of)``."""
    module = importlib.import_module(f"generate.{what}")
    return module.markdown(*([of] if of else []))


def outside_code(text, change):
    """``text`` with ``change`` applied to what is outside of fenced blocks."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


def target_of(origin, link):
    """The file of the repository that a relative link means, written in ``origin``; ValueError where there is none."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))
    if path.startswith("..") or not (ROOT / path).exists():
        raise ValueError(f"{origin}: the link to {link} leads nowhere")
    return path


def _link(docname, origin, label, link, anchor):
    """A link for the site: to the page that shows the file, else the label alone."""
    path = target_of(origin, link)
    page = SHOWN.get(path)
    if page is None and path.startswith("docs/") and path.endswith(".md"):
        page = path.removeprefix("docs/").removesuffix(".md")
    if page is None:
        return label if label.startswith("`") else f"{label} (`{path}`)" if label != path else f"`{path}`"
    relative = posixpath.relpath(f"{page}.md", posixpath.dirname(docname) or ".")
    return f"[{label}]({relative}{anchor or ''})"
