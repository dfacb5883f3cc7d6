"""Names of modules, from the keys of weights and of adapters."""

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
