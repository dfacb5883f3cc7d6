"""Entanglement measured while a model trains: a recorder for any loop, callbacks for Trainers, a loss term."""

from importlib import import_module

from artent.training.recorder import EntanglementRecorder

__all__ = ["EntanglementLoss", "EntanglementRecorder", "LightningCallback", "attach"]

# Each needs a package that the recorder does not, or is not needed to record.
_LATER = {"EntanglementLoss": "loss", "LightningCallback": "lightning", "attach": "callback"}


def __getattr__(name):
    if name in _LATER:
        return getattr(import_module(f"artent.training.{_LATER[name]}"), name)
    raise AttributeError(f"module 'artent.training' has no attribute {name!r}")
