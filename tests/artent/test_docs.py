"""The documentation holds: its examples run, its commands parse, nothing public is left out, no link leads nowhere.

`make docs` builds the site, with warnings as errors; what is here needs no Sphinx.
"""

import inspect
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import artent
import pytest
from artent import cli, entropy, plots, records, theory
from artent.study.config import config_names, named_config

import artent_ext

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from generate import commands, configuration, costs, examples, pages  # noqa: E402

PAGES = {path.relative_to(DOCS).with_suffix("").as_posix(): path.read_text() for path in DOCS.rglob("*.md")}
PAGES = {name: text for name, text in PAGES.items() if not name.startswith("_build")}


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


RUN = [name for name, text in PAGES.items() if blocks(text, "python")]


def test_there_is_a_recipe_for_each_kind_of_user():
    assert {f"recipes/{kind}" for kind in ("trainer", "checkpoint", "study", "adapters", "kernels")} <= set(RUN)


@pytest.mark.parametrize("page", RUN)
def test_examples_of_a_page_run_in_their_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, block in enumerate(blocks(PAGES[page], "python"), 1):
        exec(compile(block, f"{page}.md, example {number}", "exec"), names)
    if "plots" in sys.modules or hasattr(artent, "plots"):
        plots.plt.close("all")


def commands_of(text):
    """What follows `artent` in every command of the shell blocks, as a shell would split it."""
    for line in "".join(blocks(text, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if "artent" in words:
            yield words[words.index("artent") + 1 :]


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if list(commands_of(text))])
def test_commands_parse(page):
    for words in commands_of(PAGES[page]):
        options = cli._parser().parse_args(words)  # leaves with SystemExit where they do not
        if words[0] == "study" and not options.config.endswith(".yaml"):
            assert options.config in config_names()


def test_recipe_of_the_study_names_every_configuration():
    assert all(f"`{name}`" in PAGES["recipes/study"] for name in config_names())


def test_own_configurations_are_read(tmp_path):
    found = [block for text in PAGES.values() for block in blocks(text, "yaml")]
    assert found
    for number, block in enumerate(found):
        (file := tmp_path / f"{number}.yaml").write_text(block)
        assert named_config(file).methods


def directives():
    """(names with an entry, modules with all their members), of the pages of the API."""
    text = "".join(text for name, text in PAGES.items() if name.startswith("reference/api"))
    entries = set(re.findall(r"^\.\. auto(?:function|class|data):: (\S+)", text, re.MULTILINE))
    whole = set(re.findall(r"^\.\. automodule:: (\S+)\n +:members:", text, re.MULTILINE))
    return entries, whole


def public(module):
    """Public names of a module: those it lists, else those it defines itself."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return getattr(module, "__all__", [name for name in own if not name.startswith("_")])


def test_every_public_name_has_its_entry():
    entries, modules = directives()
    for package in (artent, artent_ext):
        assert {f"{package.__name__}.{name}" for name in package.__all__} <= entries | modules
    assert theory.__name__ in modules  # with what its __all__ names
    for module in (theory, plots, records, entropy, artent_ext.reference):
        assert module.__name__ in modules
        assert public(module)
        assert all(inspect.getdoc(getattr(module, name)) for name in public(module))


def test_every_entry_exists_and_has_a_docstring():
    for name in directives()[0]:
        module, _, attribute = name.rpartition(".")
        __import__(module)
        value = getattr(sys.modules[module], attribute)
        assert name.endswith("__version__") or inspect.getdoc(value), name


def test_command_line_page_has_every_option():
    sections = re.split(r"^## ", commands.markdown(), flags=re.MULTILINE)
    for name, (parser, _) in commands.parsers()[1].items():
        (section,) = (section for section in sections if section.startswith(f"artent {name}\n"))
        told = set(re.findall(r"--[a-z][\w-]*", parser.format_help())) - {"--help"}
        told |= {action.metavar or action.dest for action in parser._actions if not action.option_strings}
        assert told
        assert all(option in section.replace("\\|", "|") for option in told)


def test_configuration_page_has_every_key_with_its_meaning():
    page = configuration.markdown()
    for name, kind in configuration.sections():
        said = configuration.described(inspect.getdoc(kind))
        own = {f.name for f in fields(kind)} - (
            {section for section, _ in configuration.sections()} if not name else set()
        )
        assert own <= said.keys()
        assert all(f"`{key}`" in page for key in own)
    assert all(f"### {name}\n" in page for name in config_names())


@pytest.mark.parametrize(
    "made",
    [commands.markdown, configuration.markdown, examples.markdown]
    + [lambda of=of: costs.markdown(of) for of in ("overview", "sizes", "peers", "estimates", "attention")],
)
def test_tables_are_whole(made):
    tables = re.findall(r"(?:^\|.*\|\n?)+", made(), re.MULTILINE)
    assert tables
    for table in tables:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1
        assert "| None |" not in table
        assert "nan" not in table.split()


def test_page_on_reading_says_what_its_figures_show():
    sections = {s.split("\n")[0]: s for s in re.split(r"^## ", PAGES["reading"], flags=re.MULTILINE)}
    said = {"random_full": ("cut",), "random_lora": ("valley", "used"), "few_rows": ("valley", "used")}
    said |= {"unused_rank": ("valley", "used", "null"), "diverged": ("valley", "null")}
    for name, numbers in examples.numbers().items():
        for key in said[name]:
            assert numbers[key] in sections[examples.NAMES[name]], (name, key)


def slugs(text):
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", pages.outside_code(text, lambda part: part), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = PAGES[page]
    shown = pages.FILE.search(text)
    origin = shown[1] if shown else f"docs/{page}.md"
    text = (ROOT / origin).read_text()
    for _, link, anchor in pages.LINK.findall(text):
        target = ROOT / pages.target_of(origin, link)
        if anchor:
            assert anchor[1:] in slugs(target.read_text()), f"{origin}: {link}{anchor}"
    for image in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text):
        assert (path := (ROOT / origin).parent / image).is_file(), image
        assert path.suffix != ".svg" or path.with_stem(f"{path.stem}-dark").is_file()
    for _, link, _ in pages.LINK.findall(pages.filled(page, text) if not shown else pages.filled(page, PAGES[page])):
        assert (DOCS / page).parent.joinpath(link).is_file(), link


def test_no_page_stands_outside_the_tree():
    listed = set()
    for name, text in PAGES.items():
        for tree in re.findall(r"^```{toctree}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            entries = [line for line in tree.splitlines() if line and not line.startswith(":")]
            entries = [re.sub(r".* <(.+)>$", r"\1", entry) for entry in entries]
            listed |= {(Path(name).parent / entry).as_posix() for entry in entries}
    assert listed | {"index"} == set(PAGES)
