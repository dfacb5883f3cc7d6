"""Import orders, each in a fresh interpreter; and what the MPS adapter's type is to PEFT."""

import copy
import json
import pickle
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


ALIKE = {
    "text": (str, repr, format, lambda member: json.dumps({member: member})),
    "names": (lambda member: member.name, lambda member: member.value, lambda member: member.__reduce_ex__(4)),
    "kind": (type, lambda member: sorted(vars(member)), lambda member: member.__objclass__, dir),
    "identity": (
        lambda member: copy.deepcopy(member) is copy.copy(member) is pickle.loads(pickle.dumps(member)) is member,
        lambda member: type(member)(member.value) is type(member)[member.name] is getattr(type(member), member.name),
        lambda member: list(type(member)).count(member) == list(type(member)).count(member.value) == 1,
        lambda member: type(member).__members__[member.name] is member in type(member),
        lambda member: list(type(member)).index(member) == member._sort_order_,
    ),
    "equality": (lambda m: m == m.value, lambda m: {m: 1}[m.value], lambda m: hash(m) == hash(m.value), str.islower),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_the_type_is_to_peft_what_its_own_are(kind):
    from artent.adapters.mps.peft_shim import PEFT_TYPE
    from peft import PeftType

    assert PeftType.ARTENT_MPS is PEFT_TYPE
    for look in ALIKE[kind]:
        found, wanted = look(PEFT_TYPE), look(PeftType.LORA)
        assert type(found) is type(wanted)
        assert repr(found).replace("ARTENT_MPS", "LORA") == repr(wanted).replace("ARTENT_MPS", "LORA")
    with pytest.raises(AttributeError):
        PeftType.ARTENT_MPS = "another"
    with pytest.raises(AttributeError):
        del PeftType.ARTENT_MPS


def test_registering_again_changes_nothing():
    from artent.adapters.mps import MPSConfig, MPSModel, peft_shim
    from peft import PeftType, mapping
    from peft.utils import hotswap

    def known():
        maps = (value for name, value in vars(mapping).items() if name.startswith("PEFT_TYPE_TO_"))
        check = hotswap.check_hotswap_configs_compatible
        return [*map(dict, maps), list(PeftType), dict(hotswap.CONFIG_KEYS_TO_CHECK), check]

    before = known()
    assert (MPSConfig, MPSModel, "artent_mps_") == tuple(
        found[PeftType.ARTENT_MPS] for found in before[:2] + before[3:4]
    )
    peft_shim.register(MPSConfig, MPSModel)
    assert peft_shim._add_member() is PeftType.ARTENT_MPS
    assert known() == before
    assert PeftType.ARTENT_MPS not in mapping.PEFT_TYPE_TO_MIXED_MODEL_MAPPING
