"""artent: the entanglement of what fine-tuning writes into a language model, and of what the model attends to.

Names are loaded on first use, so ``import artent`` stays light: it imports neither torch nor transformers nor peft
nor matplotlib. ``artent.entanglement_profile`` is the place to start.
"""

from importlib import import_module

from artent import _registration

_registration.install()

_EXPORTS = {
    "EntanglementLoss": "artent.training",
    "EntanglementProfile": "artent.entanglement",
    "EntanglementRecorder": "artent.training",
    "LightningCallback": "artent.training",
    "LoRAUpdate": "artent.updates",
    "MPSConfig": "artent.adapters.mps",
    "MPSUpdate": "artent.updates",
    "RankSuggestion": "artent.ranks",
    "attach": "artent.training",
    "attention_entanglement": "artent.attention",
    "entanglement_profile": "artent.profile",
    "from_lora": "artent.adapters.mps",
    "profile_model": "artent.checkpoints",
    "suggest_ranks": "artent.ranks",
    "to_lora": "artent.adapters.mps",
    "weight_updates": "artent.checkpoints",
    "__version__": "artent_ext._version",
}
_MODULES = (
    "adapters",
    "attention",
    "checkpoints",
    "distributed",
    "entanglement",
    "entropy",
    "mps",
    "plots",
    "profile",
    "ranks",
    "records",
    "schmidt",
    "sites",
    "study",
    "theory",
    "training",
    "updates",
)

__all__ = [*_EXPORTS, "plots", "theory"]


def __getattr__(name):
    if name in _EXPORTS:
        value = getattr(import_module(_EXPORTS[name]), name)
    elif name in _MODULES:
        value = import_module(f"artent.{name}")
    else:
        raise AttributeError(f"module 'artent' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *_EXPORTS, *_MODULES])
