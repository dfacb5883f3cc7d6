"""The MPS adapter as a PEFT method: ``artent.MPSConfig`` used like ``LoraConfig`` (docs/math.md §6).

Importing this package makes PEFT know the method; ``import artent`` does so when PEFT is imported, before or after.
"""

from artent.adapters.mps import peft_shim

try:
    from artent.adapters.mps.config import MPSConfig
    from artent.adapters.mps.convert import Conversion, ConvertedUpdate, from_lora, to_lora
    from artent.adapters.mps.model import MPSModel
except ImportError as error:
    if (error.name or "").startswith("peft"):  # a name that this PEFT has elsewhere, or not yet
        raise peft_shim.unsupported(error) from error
    raise

peft_shim.register(MPSConfig, MPSModel)

__all__ = ["Conversion", "ConvertedUpdate", "MPSConfig", "MPSModel", "from_lora", "to_lora"]
