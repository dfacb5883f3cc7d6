"""A library of kernels on the simulated machine, called on torch tensors by ctypes. What it checks: README.md."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_size_t, c_void_p

INPUT, OUTPUT, SCRATCH, WRITTEN = range(4)  # what a kernel may do with a buffer (memory.h)


class Driver:
    """A shared library of drivers. Tensors become registered buffers; a fault becomes a RuntimeError."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.library.simt_buffer.argtypes = [c_char_p, c_void_p, c_size_t, c_int]

    def function(self, name, *argtypes):
        function = getattr(self.library, name)
        function.argtypes, function.restype = argtypes, c_char_p
        return function

    def clear(self):
        self.library.simt_clear()

    def buffer(self, name, tensor, use=INPUT):
        """Registers exactly the bytes that the tensor's strides span; returns the address."""
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        size = (last + 1) * tensor.element_size() if tensor.numel() else 0
        self.library.simt_buffer(name.encode(), tensor.data_ptr(), size, use)
        return tensor.data_ptr()

    def check(self, message):
        if message is not None:
            raise RuntimeError(message.decode())
