"""The only place that reaches into PEFT: a type of its own for the MPS method, and its registration.

PEFT's registry takes only names that are members of its ``PeftType`` enum, and an enum takes no members from outside
by any public way. So a member is made as the enum itself makes them; from then on saving, loading, pickling and
``register_peft_method`` treat it like the built-in ones.
"""

try:
    import peft
except ImportError as error:
    raise ImportError(f"the MPS adapter is a method of PEFT ({error}): pip install 'artent[peft]'") from error

NAME = "ARTENT_MPS"
PREFIX = "artent_mps_"
TESTED = "0.18.0 to 0.21.2"

# What two adapters must share for one's weights to be swapped into the other's place.
_SWAPPED_ALIKE = (
    *("r", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout"),
    *("chi", "sites", "carrier", "tensorize"),
)


def unsupported(error) -> ImportError:
    """``error`` in a sentence that says which versions of PEFT work."""
    return ImportError(
        f"artent's MPS adapter cannot register with peft {peft.__version__} ({type(error).__name__}: {error}). It is "
        f"tested with peft {TESTED}: install one of these, or use LoRA with this one"
    )


try:
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils import PeftType, hotswap, register_peft_method
except ImportError as error:
    raise unsupported(error) from error

# Older versions train the biases that ``bias`` asks for and then leave them out of what is saved.
SAVES_BIAS = hasattr(BaseTuner, "_get_learnable_bias_state_dict")


def _add_member() -> PeftType:
    if NAME in PeftType.__members__:
        return PeftType[NAME]
    member = str.__new__(PeftType, NAME)
    member._name_ = member._value_ = NAME
    member._sort_order_ = len(PeftType.__members__)
    member.__objclass__ = PeftType
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    PeftType._member_names_.append(NAME)
    type.__setattr__(PeftType, NAME, member)  # from Python 3.12 on attributes are not looked up in the map
    if PeftType(NAME) is not member or PeftType[NAME] is not member or NAME not in list(PeftType):
        raise TypeError(f"PeftType did not take {NAME} as a member")
    return member


def register(config_cls, model_cls) -> None:
    """Make the method known to PEFT, once. Raises ImportError where this PEFT does not let it."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if PEFT_TYPE in PEFT_TYPE_TO_CONFIG_MAPPING:
        return
    try:
        if model_cls.__abstractmethods__:
            raise TypeError(f"a method has to define {', '.join(sorted(model_cls.__abstractmethods__))}")
        hotswap.CONFIG_KEYS_TO_CHECK[PEFT_TYPE] = list(_SWAPPED_ALIKE)
        hotswap.check_hotswap_configs_compatible = _without_patterns(hotswap.check_hotswap_configs_compatible)
        register_peft_method(name=NAME.lower(), config_cls=config_cls, model_cls=model_cls, prefix=PREFIX)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unsupported(error) from error


def _without_patterns(check):
    """PEFT's check before a swap, and ours: it would scale by lora_alpha / r, and look into no pattern."""

    def check_also(old, new):
        for name in ("rank_pattern", "alpha_pattern"):
            if old.peft_type == PEFT_TYPE == new.peft_type and (getattr(old, name) or getattr(new, name)):
                raise ValueError(
                    f"{name}: PEFT swaps no adapters with patterns while running, got {getattr(new, name)}. Call "
                    "load_adapter with a name of its own, and set_adapter"
                )
        check(old, new)

    return check_also


try:
    PEFT_TYPE = _add_member()
except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise unsupported(error) from error
