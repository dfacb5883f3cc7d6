"""Tell transformers about the attention implementation, and PEFT about the MPS adapter, when they are imported.

``import artent`` must stay light, so it can't import them to register, and they may come before or after it. A finder
at the front of ``sys.meta_path`` finds nothing by itself: it takes what the other finders found and adds a step after
execution.
"""

import sys
import warnings
from importlib.abc import MetaPathFinder


def _register_attention():
    try:
        import artent.attention.implementation  # noqa: F401  (it registers itself)
    except ImportError as error:  # an older transformers: it must still import
        warnings.warn(
            f'attn_implementation="artent" is not registered: it needs transformers ≥ 5.0 ({error})',
            stacklevel=2,
        )


def _register_adapter():
    try:
        import artent.adapters.mps  # noqa: F401  (it registers itself)
    except ImportError as error:  # a PEFT that does not take it must still import
        warnings.warn(str(error), stacklevel=2)


_AFTER_IMPORT = {"transformers.modeling_utils": _register_attention, "peft": _register_adapter}


class _AfterImport(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        action = _AFTER_IMPORT.get(name)
        if action is None:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                action()

            spec.loader.exec_module = exec_module
        return spec


def install():
    """Register with what is imported already, and with the rest as soon as it is. A second call changes
    nothing."""
    if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _AfterImport())
    for name, action in _AFTER_IMPORT.items():
        if name in sys.modules:
            action()
