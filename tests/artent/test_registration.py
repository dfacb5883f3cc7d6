"""Import orders, each in a fresh interpreter."""

import subprocess
import sys

import pytest

CHECK = """
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
assert "artent" in ALL_ATTENTION_FUNCTIONS and "artent" in ALL_MASK_ATTENTION_FUNCTIONS
"""
ORDERS = {
    "artent first": "import artent\nimport transformers",
    "transformers first": "import transformers.modeling_utils\nimport artent",
    "the implementation itself first": "import artent.attention.implementation",
}


@pytest.mark.parametrize("order", ORDERS)
def test_registered_whatever_is_imported_first(order):
    subprocess.run([sys.executable, "-W", "error::UserWarning:artent", "-c", ORDERS[order] + CHECK], check=True)


def test_installing_twice_changes_nothing():
    from artent import _registration

    before = list(sys.meta_path)
    _registration.install()
    assert sys.meta_path == before


def test_import_is_light_and_an_older_transformers_still_imports(tmp_path):
    """Without the interfaces there's nothing to register with: all else works, and a warning says what doesn't."""
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").touch()
    (tmp_path / "transformers" / "modeling_utils.py").write_text("loaded = True\n")
    code = (
        "import artent; assert not {'transformers', 'peft', 'matplotlib'} & set(sys.modules);"
        "import transformers.modeling_utils as m; print(m.loaded)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert shown.stdout.strip() == "True"
    assert "not registered" in shown.stderr
