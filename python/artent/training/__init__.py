"""Entanglement measured while a model trains: a recorder for any loop, a callback for transformers' Trainer."""

from artent.training.recorder import EntanglementRecorder

__all__ = ["EntanglementRecorder", "attach"]


def __getattr__(name):
    if name == "attach":  # needs transformers, which the recorder does not
        from artent.training.callback import attach

        return attach
    raise AttributeError(f"module 'artent.training' has no attribute {name!r}")
