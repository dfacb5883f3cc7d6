"""What the arguments of all ops share: the dtypes taken, the derivatives refused, when values may be looked at.

Everything people can get wrong is told in Python, once, before native code runs.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 input, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def integer(name: str, value, expected: str = "an integer", hint: str = "") -> int:
    """value as an int (or SymInt), numpy's integers included; TypeError for bools and all else."""
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return value
    try:
        if not isinstance(value, (bool, Tensor)):  # a tensor would wait for the device
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name} must be {expected}, got {type(value).__name__}{hint}")


def refuse_transforms(name: str, *tensors: Tensor | None) -> None:
    """NotImplementedError where a derivative is asked for that the op would answer with zeros, or obscurely."""
    if forward_ad._current_level < 0 and _functorch.maybe_current_level() is None:
        return
    for x in tensors:
        while x is not None:
            plain = forward_ad._current_level >= 0 and not _functorch.is_batchedtensor(x)
            if plain and forward_ad.unpack_dual(x).tangent is not None:
                raise NotImplementedError(
                    f"{name} has no forward-mode derivative (jvp); use reverse mode (torch.autograd, backward)"
                )
            if _functorch.is_gradtrackingtensor(x) and x.requires_grad:
                raise NotImplementedError(
                    f"{name} has no torch.func derivative (grad, vjp, jacrev); use torch.autograd (grad, backward)"
                )
            # vmap in jvp: the tangent belongs to the tensor that vmap has wrapped.
            x = _functorch.get_unwrapped(x) if _functorch.is_functorch_wrapped_tensor(x) else None


def floating(x, name: str) -> Tensor:
    """x, a dense tensor of real floats with two dimensions or more."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in _FLOATS:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}; convert it, e.g. {name}.float()"
        )
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {x.layout}; {name}.to_dense() makes one")
    if x.dim() < 2:
        raise ValueError(f"{name} must have at least two dimensions (..., H, T, D), got shape {tuple(x.shape)}")
    return x


def autocast(x: Tensor) -> Tensor:
    """Under autocast, the dtype that scaled_dot_product_attention would compute in."""
    device = x.device.type
    if device == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def on_device_of(query: Tensor, x: Tensor, name: str) -> None:
    """ValueError unless x lies where query lies."""
    if x.device != query.device:
        raise ValueError(f"{name} is on {x.device} and query is on {query.device}: move them to one device")


def is_static(x: Tensor) -> bool:
    """Whether values must not be looked at: while tracing, without data, in vmap, while a CUDA graph is recorded."""
    if torch.compiler.is_compiling() or x.device.type == "meta" or isinstance(x, torch._subclasses.FakeTensor):
        return True
    if any(level.key() == _functorch.TransformType.Vmap for level in _functorch.get_interpreter_stack() or ()):
        return True
    return x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _broadcast(a, b, what):
    try:
        return torch.broadcast_shapes(a, b)
    except RuntimeError:
        raise ValueError(f"{what} do not broadcast: {tuple(a)} and {tuple(b)}") from None
