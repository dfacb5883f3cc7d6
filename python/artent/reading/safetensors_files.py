"""Tensors in safetensors files, by name, each read when asked for; nothing is ever unpickled."""

import json
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

# What training with artent keeps beside a model: the weights that it started from.
BASE_FILE = "artent_base.safetensors"
_INDEX = "*.safetensors.index.json"
# What a folder's own model or adapter is called, whatever lies beside it.
_WHOLE = ("adapter_model.safetensors", "model.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Facts(NamedTuple):
    """What is known of a tensor before it is read; ``dtype`` is None for what is no half, float or double."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    kind: str  # of dtype, in words


class SafetensorsFiles(Mapping):
    """The tensors of one ``.safetensors`` file, or of a folder: of the files its index names, or of all there are.

    ``argument`` is what the caller calls ``path``, for its messages; tensors are read to ``device``.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: no safetensors there, a file that is damaged or missing from the index.
    """

    def __init__(self, path, argument: str, device="cpu"):
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise ImportError("safetensors files need `pip install artent[transformers]`") from error
        self._open, self._error, self.device = safe_open, SafetensorError, str(device)
        self.argument, self.path = argument, Path(path)
        self._file_of, self._facts = {}, {}
        for file in self._files():
            with self._opened(file) as opened:
                for name in opened.keys():  # noqa: SIM118 (no mapping)
                    if other := self._file_of.get(name):
                        raise ValueError(
                            f"{self._said()}: {name!r} is in {other.name} and in {file.name}. Likely cause: "
                            "two checkpoints in one folder, a whole and a sharded one; pass one file, or remove one"
                        )
                    self._file_of[name] = file
                    part = opened.get_slice(name)
                    kind = str(part.get_dtype())
                    self._facts[name] = Facts(tuple(part.get_shape()), _TYPES.get(kind), kind.lower())
        self._check_index()

    def facts(self, name: str) -> Facts:
        """Shape and dtype of a tensor, from the header of its file."""
        return self._facts[name]

    def __getitem__(self, name):
        with self._opened(self._file_of[name]) as file:
            return file.get_tensor(name)

    def __contains__(self, name):  # Mapping's own would read the tensor
        return name in self._file_of

    def __iter__(self):
        return iter(self._file_of)

    def __len__(self):
        return len(self._file_of)

    def _files(self):
        path = self.path
        if not path.exists():
            raise FileNotFoundError(
                f"{self.argument}: there is no file or folder {str(path)!r} (hub names are not fetched: download the "
                "model, or load it and pass it)"
            )
        if path.is_dir():
            return self._of_folder()
        if path.suffix != ".safetensors":
            hint = "Pass the folder of this index" if path.name.endswith(".index.json") else _UNPICKLED
            raise ValueError(f"{self._said()}: {_EXPECTED}. {hint}")
        return [path]

    def _of_folder(self):
        """The files of a folder: the whole model where there is one, else what the index names, else all."""
        path = self.path
        whole, index = next((path / name for name in _WHOLE if (path / name).is_file()), None), self._index()
        if whole and index and whole.name not in index[1].values():
            raise ValueError(
                f"{self._said()}: {index[0].name} does not name {whole.name}. Likely cause: two checkpoints in one "
                "folder, a whole and a sharded one; pass one file, or remove one"
            )
        if whole and not index:
            return [whole]
        if index:
            names = sorted({str(shard) for shard in index[1].values()})
            if lost := [shard for shard in names if not (path / shard).is_file()]:
                raise ValueError(
                    f"{self._said()}: {index[0].name} names {len(names)} files, and {len(lost)} of them are "
                    f"missing ({', '.join(lost[:3])}). Likely cause: an interrupted download or copy"
                )
            return [path / shard for shard in names]
        if files := sorted(file for file in path.glob("*.safetensors") if file.name != BASE_FILE):
            return files
        pickled = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
        below = sorted({file.parent.name for file in path.glob("*/*.safetensors")})
        hint = "is it another folder?"
        if below:
            hint = f"its folders {', '.join(below[:3])} do: pass one of them"
        if pickled:
            hint = f"this one holds {', '.join(pickled[:3])}. {_UNPICKLED}"
        raise ValueError(f"{self._said()}: {_EXPECTED}; {hint}")

    def _said(self):
        return f"{self.argument}={str(self.path)!r}"

    def _index(self):
        """(file, {tensor: shard}) of the folder's index, None where it has none or more than one."""
        found = sorted(self.path.glob(_INDEX))
        if len(found) != 1:
            return None
        try:
            named = json.loads(found[0].read_text(encoding="utf-8"))["weight_map"]
            if not isinstance(named, dict):
                raise TypeError("its weight_map is no object")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{found[0]}: is no index of safetensors files ({error!r}). Likely cause: a damaged file; without an "
                "index every .safetensors file of the folder is read"
            ) from error
        return found[0], named

    def _check_index(self):
        index = self._index() if self.path.is_dir() else None
        if index and (lost := [name for name in index[1] if name not in self._file_of]):
            raise ValueError(
                f"{self._said()}: {index[0].name} names {len(lost)} tensors that its files do not "
                f"hold ({', '.join(lost[:3])}). Likely cause: files of two checkpoints in one folder"
            )

    @contextmanager
    def _opened(self, file):
        try:
            with self._open(file, framework="pt", device=self.device) as opened:
                yield opened
        except self._error as error:
            raise ValueError(
                f"{self.argument}: {file} cannot be read as safetensors ({error}). Likely cause: a truncated download, "
                "a git-lfs pointer (git lfs pull), a damaged file, or a pickle under another name (never opened)"
            ) from error
        except OSError as error:
            raise ValueError(f"{self.argument}: {file} cannot be read ({error.strerror or error})") from error


_EXPECTED = "expected a .safetensors file, or a folder that holds some"
_UNPICKLED = (
    "Pickled checkpoints (.bin, .pt) are not opened, since opening one runs code: load the model and pass it, or "
    "save it again as safetensors"
)
