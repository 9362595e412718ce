"""Nested states of tensors and plain values, to and from JSON and safetensors; nothing executable is ever read."""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offprints.shared.store import files
from offprints.shared.store.files import digest, file_digest, malformed, replacing, to_json, write
from offprints.shared.usage import UsageError

if TYPE_CHECKING:
    import torch

FORMAT = 1
# What reading something that no run has written may raise, down to a number of elements that no memory holds.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError),
    *(RuntimeError, RecursionError, OverflowError, MemoryError),
)
# The types that every version of safetensors knows; others are stored as integers of their size.
_STORED = {f"torch.{name}" for name in ("float64", "float32", "float16", "bfloat16", "bool", "uint8")}
_STORED |= {f"torch.int{bits}" for bits in (8, 16, 32, 64)}
_SOUND: dict[str, Callable[[Any], bool]] = {
    "key": lambda value: type(value) is str,
    "elapsed": lambda value: type(value) in (int, float) and 0 <= value < math.inf,
    "step": lambda value: type(value) is int,
    "log_bytes": lambda value: type(value) is int and value >= 0,
}
_NUMERIC = "biufc"  # kinds of NumPy's types
Packed = tuple[Any, dict[str, "torch.Tensor"]]


class _Packer:
    """Collects the tensors of a state under readable names, each memory once."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._known: dict[Any, dict[str, Any]] = {}  # by the view of a memory
        self._memories: set[int] = set()  # already stored as they are
        self._kept: list[torch.Tensor] = []  # so that no memory is given out twice while packing

    def pack(self, value: Any, path: str) -> Any:
        import numpy as np
        import torch

        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        if kind is np.ndarray or isinstance(value, np.generic):
            if value.dtype.kind not in _NUMERIC:
                raise TypeError(f"{path or 'the state'} is an array of {value.dtype}; only numbers can be stored")
            # ascontiguousarray also brings foreign byte orders to the machine's own; it turns 0-d into 1-d
            array = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("=")).reshape(np.shape(value))
            name = self._tensor(torch.from_numpy(array.copy()), path)["tensor"]
            return {"array" if kind is np.ndarray else "scalar": name, "dtype": array.dtype.name}
        if kind is list:
            return [self.pack(item, _join(path, i)) for i, item in enumerate(value)]
        if kind is tuple or kind is torch.Size:
            return {"tuple": [self.pack(item, _join(path, i)) for i, item in enumerate(value)]}
        if kind is bytes:
            return {"bytes": base64.b64encode(value).decode()}
        if isinstance(value, Mapping):
            items = [[self._key(key, path), self.pack(item, _join(path, key))] for key, item in value.items()]
            return {"counter" if kind is Counter else "dict": items}
        raise TypeError(
            f"{path or 'the state'} is a {kind.__name__}; a state is made of dicts, lists, tuples, tensors, arrays,"
            " numbers, strings, bytes and None"
        )

    def _key(self, key: Any, path: str) -> Any:
        if isinstance(key, tuple) or key is None or type(key) in (bool, int, float, str):
            return self.pack(key, path)
        raise TypeError(f"{path or 'the state'} has the key {key!r}; keys are strings, numbers or tuples of them")

    def _tensor(self, tensor: torch.Tensor, path: str) -> dict[str, Any]:
        import torch

        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
            raise TypeError(f"{path} is a {type(tensor).__name__} of layout {tensor.layout}; give a plain dense tensor")
        if tensor.is_quantized or tensor.is_meta:
            raise TypeError(f"{path} is a {'quantized' if tensor.is_quantized else 'meta'} tensor without plain values")
        self._kept.append(tensor)
        entry: dict[str, Any] = {}
        if tensor.device.type != "cpu":
            entry["accelerator"] = True
        if tensor.is_complex():
            entry["complex"] = True
        memory = tensor.untyped_storage().data_ptr()
        shape = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        view = (memory, *shape, tensor.dtype, tensor.device, tensor.is_conj(), tensor.is_neg())
        if memory and view in self._known:
            return self._known[view]
        dense = tensor.detach().resolve_conj().resolve_neg()
        dense = torch.view_as_real(dense) if tensor.is_complex() else dense
        stored = dense.to("cpu").contiguous()
        if str(stored.dtype) not in _STORED:
            entry["dtype"] = str(stored.dtype).removeprefix("torch.")
            stored = stored.view(getattr(torch, f"int{8 * stored.itemsize}"))
        place = stored.untyped_storage()
        if place.data_ptr() in self._memories or place.nbytes() != stored.nbytes:
            stored = stored.clone()
        if stored.nbytes:
            self._memories.add(stored.untyped_storage().data_ptr())
        name = path
        while name in self.tensors or name in ("", "__metadata__"):
            name += "'"
        self.tensors[name] = stored
        self._known[view] = {"tensor": name, **entry}
        return self._known[view]


def _join(path: str, key: Any) -> str:
    part = re.sub(r"[^\w.-]", "_", str(key))
    return f"{path}.{part}" if path else part


def pack(value: Any) -> Packed:
    """``value`` as a JSON structure and named tensors on the CPU.

    Tensors that are one memory are stored once and are one tensor again after `unpack`. Gradients, subclasses of
    mappings (but Counter) and the memory layout of tensors are not kept.

    Raises:
        TypeError: a part is of another kind than dicts, lists, tuples, dense tensors, numeric arrays, numbers, strings,
            bytes and None; its path is named.
    """
    packer = _Packer()
    return packer.pack(value, ""), packer.tensors


def unpack(packed: Packed, device: torch.device | str = "cpu") -> Any:
    """What `pack` was given; tensors that were on an accelerator are put on ``device``.

    Raises:
        ValueError: the structure is not one that `pack` makes, or a tensor is missing.
    """
    structure, tensors = packed
    made: dict[str, torch.Tensor] = {}

    def build(node: Any) -> Any:
        import numpy as np
        import torch

        if isinstance(node, list):
            return [build(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "tensor" in node:
            name = node["tensor"]
            if name not in made:
                tensor = tensors[name]
                tensor = tensor.view(_dtype(node["dtype"])) if "dtype" in node else tensor
                tensor = torch.view_as_complex(tensor) if node.get("complex") else tensor
                made[name] = tensor.to(device) if node.get("accelerator") else tensor
            return made[name]
        if "array" in node or "scalar" in node:
            tensor = tensors[node["array" if "array" in node else "scalar"]]
            array = tensor.numpy()
            if np.dtype(node["dtype"]).kind not in _NUMERIC:
                raise ValueError(f"an array of {node['dtype']}")
            if np.dtype(node["dtype"]).kind == "c":
                array = array.view(node["dtype"])[..., 0]
            array = array.astype(node["dtype"])
            return array if "array" in node else array[()]
        ((kind, content),) = node.items()
        if kind in ("dict", "counter"):
            mapping = {build(key): build(item) for key, item in content}
            return Counter(mapping) if kind == "counter" else mapping
        if kind == "tuple":
            return tuple(build(item) for item in content)
        if kind == "float":
            return float(content)
        if kind == "bytes":
            return base64.b64decode(content)
        raise ValueError(f"unknown kind {kind!r}")

    try:
        return build(structure)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, RecursionError, OverflowError) as error:
        raise ValueError(f"malformed state: {error!r}") from error


def _dtype(name: str) -> torch.dtype:
    import torch

    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return dtype


def to_bytes(packed: Packed) -> bytes:
    """For the way between processes."""
    import safetensors.torch

    structure = to_json(packed[0]).encode()
    return len(structure).to_bytes(8, "little") + structure + safetensors.torch.save(packed[1])


def from_bytes(data: bytes) -> Packed:
    """The inverse of `to_bytes`."""
    import safetensors.torch

    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), _in_memory(safetensors.torch.load(data[8 + length :]))


def save(path: Path, packed: Packed, **about: Any) -> list[Path]:
    """Write ``path`` (JSON: the structure, ``about``, checksums) and, before it, the tensors beside it.

    The JSON file's appearance makes the state complete: killed at any moment, there is a complete state or none.
    Returns the files written.
    """
    structure, tensors = packed
    record: dict[str, Any] = {"format": FORMAT, **about, "tensors": None, "state": structure}
    written = []
    if tensors:
        file, sha256 = _save_tensors(path.with_suffix(""), tensors)
        record["tensors"] = {"file": file.name, "sha256": sha256}
        written.append(file)
    write(path, to_json(record | {"sha256": digest(record)}))
    return [*written, path]


def _save_tensors(stem: Path, tensors: dict[str, torch.Tensor]) -> tuple[Path, str]:
    """Write ``<stem>-<digest>.safetensors``, a name that no other content has, so that nothing is ever overwritten."""
    import safetensors.torch

    sha256 = ""

    def name() -> Path:
        return stem.with_name(_tensors_name(stem.name, sha256))

    with replacing(stem, name) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary)
        except safetensors.SafetensorError as error:
            code = re.search(r"(?:os error|code:) (\d+)", str(error))  # the one where its words hold the system's
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(temporary)) from error
        sha256 = file_digest(temporary)
    return name(), sha256


def read(path: Path, *, fingerprint: str, key: str | None = None, needs: Sequence[str] = ()) -> dict[str, Any]:
    """The record that `save` wrote, once it is sure that it and its tensors are whole.

    ``needs`` names what of ``about`` must be there: key, elapsed, step, log_bytes.

    Raises:
        UsageError: it is malformed, or belongs to a run with another ``fingerprint`` or to another ``key``.
    """
    try:
        record = json.loads(files.read(path))
        told = record.pop("sha256")
        sound = told == digest(record) and record["format"] == FORMAT
        sound = sound and "state" in record and all(_SOUND[name](record[name]) for name in needs)
        if sound and record["tensors"] is not None:
            sha256 = record["tensors"]["sha256"]
            sound = record["tensors"] == {"file": _tensors_name(path.stem, sha256), "sha256": sha256}
            sound = sound and file_digest(path.with_name(record["tensors"]["file"])) == sha256
    except _UNREADABLE:
        sound = False
    if not sound:
        raise malformed(path)
    if record.get("fingerprint") != fingerprint:
        raise UsageError(f"{path} belongs to a run with another configuration")
    if key is not None and record.get("key") != key:
        raise UsageError(f"{path} belongs to {record.get('key')!r}, not to {key!r}")
    return dict(record)


def _tensors_name(stem: str, sha256: str) -> str:
    return f"{stem}-{sha256[:16]}.safetensors"


def load(path: Path, record: dict[str, Any]) -> Packed:
    """The packed state of a record that `read` returned, such that `unpack` can make the state of it.

    Raises:
        UsageError: it is malformed.
    """
    import safetensors.torch

    try:
        tensors = {}
        if record["tensors"] is not None:
            tensors = _in_memory(safetensors.torch.load_file(path.with_name(record["tensors"]["file"])))
        packed = record["state"], tensors
        unpack(packed)
    except (*_UNREADABLE, safetensors.SafetensorError) as error:
        raise malformed(path) from error
    return packed


def _in_memory(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies as torch itself allocates them.

    safetensors may hand out a mapped file: its tensors are aligned to 8 bytes, with which torch's complex arithmetic
    crashes and other sums may be ordered otherwise, and they hold on to a file that will be removed.
    """
    return {name: tensor.clone() for name, tensor in tensors.items()}
