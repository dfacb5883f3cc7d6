"""The documentation site: Markdown pages (MyST), docstrings (autodoc), the furo theme. `make docs` builds it.

Nothing is fetched while building, and the pages fetch nothing when read.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import artent
from generate import pages

project = "artent"
author = "the artent contributors"
copyright = "the artent contributors, Apache-2.0"
version = release = artent.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["attrs_inline", "attrs_block", "deflist"]
myst_heading_anchors = 4
exclude_patterns = ["_build", "generate", "figures", "images"]

# A link or a name that leads nowhere is an error; names of other projects are not ours to resolve.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!artent).*"),
    *pages.NOT_PUBLIC,
]
smartquotes_action = "D"  # quotes stay as they are typed

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
maximum_signature_line_length = 100
add_module_names = False
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_param = False  # "minimum, maximum: …" is one entry
napoleon_use_rtype = False
napoleon_preprocess_types = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"artent {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"


def setup(app):
    app.connect("source-read", pages.fill)
    app.connect("autodoc-process-docstring", pages.docstring)
    return {"parallel_read_safe": True}
