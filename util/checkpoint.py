"""Checkpoints as safetensors: tensors and plain metadata, never a pickle, never half-written, known when damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from util.errors import UserError
from util.files import atomic_write

FORMAT = "3TDCFNet"
FORMAT_VERSION = 1
_TENSOR = "__tensor__"
_PICKLE = "a pickle (.pth), which may hold code and is not opened"


def flatten(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Replace the tensors in nested dicts and lists by references and collect them in ``tensors``.

    Raises:
        TypeError: something that is neither tensor nor plain.
    """
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        return {str(key): flatten(item, tensors, f"{path}/{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [flatten(item, tensors, f"{path}/{index}") for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path}: a {type(value).__name__} cannot be stored in a checkpoint")


def host_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies of tensors on the host, each with memory of its own.

    From a GPU those of one kind cross over together: a network has a thousand, and each copy would wait for the device.
    """
    away: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            away.setdefault((tensor.device, tensor.dtype), []).append(name)
    arrived: dict[str, Tensor] = {}
    for names in away.values():
        whole = torch.cat([tensors[name].reshape(-1) for name in names]).cpu()
        parts = whole.split([tensors[name].numel() for name in names])
        arrived.update((name, part.view(tensors[name].shape)) for name, part in zip(names, parts, strict=True))
    return {
        name: arrived.get(name, tensor).clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put the tensors back where ``flatten`` took them from; keys come back as text."""
    if isinstance(value, dict):
        if set(value) == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {key: unflatten(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [unflatten(item, tensors) for item in value]
    return value


def on_host(content: Mapping[str, Any]) -> dict[str, Any]:
    """Content as ``load_checkpoint`` would give it back, without a file between: later steps do not change it.

    Raises:
        TypeError: something that is neither tensor nor plain.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = flatten(content, tensors)
    return cast(dict[str, Any], unflatten(skeleton, host_copies(tensors)))


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write nested plain data with tensors as one safetensors file, atomically.

    Raises:
        UserError: the folder cannot be written or the disk is full; an older file of that name is untouched.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    skeleton = flatten(content, tensors)
    # Tensors that share memory (tied weights, views) must be separate in the file.
    separate = host_copies(tensors)
    text = json.dumps(skeleton)
    metadata = {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "content": text,
        "sha256": content_digest(text, separate),
    }
    atomic_write(path, save(separate, metadata=metadata))


def content_digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a checkpoint's plain content and of its tensors' names and bytes, as hexadecimal digits.

    safetensors knows a file that was cut short, but not one whose bytes have changed.
    """
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_checkpoint(path: Path) -> Any:
    """Read what ``save_checkpoint`` wrote; tensors arrive on the CPU.

    Raises:
        UserError: the file is missing, cut short, a pickle or otherwise not safetensors, or not of this project.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"no checkpoint at {path}", remedy="train first, or check --name and --checkpoints_dir")
    expected = "a safetensors file written by 3TDCFNet_train.py"
    remedy = "use another checkpoint, or train again"
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} is not a checkpoint of this project", expected=expected, remedy=remedy)
            _check_version(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        # Files of before the digest was written have none.
        if "sha256" in metadata and metadata["sha256"] != content_digest(metadata["content"], tensors):
            raise ValueError("its content is not what its checksum says")
        return unflatten(json.loads(metadata["content"]), tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        found = _PICKLE if _looks_pickled(path) else f"a file that is damaged or something else ({error})"
        raise UserError(f"{path} cannot be read", expected=expected, found=found, remedy=remedy) from None


def _looks_pickled(path: Path) -> bool:
    """Whether a file that is no safetensors file begins as torch.save's or pickle's do."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return False
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _check_version(path: Path, metadata: Mapping[str, str]) -> None:
    version = metadata.get("version", "")
    if version != str(FORMAT_VERSION):
        raise UserError(
            f"{path} has checkpoint format {version!r}",
            expected=f"format {FORMAT_VERSION}",
            remedy="use the version of the toolkit that wrote it",
        )


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    """What a copy into another type would lose silently."""
    return tensor.is_floating_point(), tensor.is_complex()


def load_weights(module: torch.nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Copy weights into a module, refusing any that are missing, superfluous, of another shape or kind of number.

    Raises:
        UserError: naming the first differences, as for a checkpoint of another architecture.
    """
    own = module.state_dict()
    weights = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    wrong = [f"missing {key}" for key in own if key not in weights]
    wrong += [f"unknown {key}" for key in weights if key not in own]
    wrong += [
        f"{key} is {tuple(weights[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    wrong += [
        f"{key} is {weights[key].dtype}, expected {own[key].dtype}"
        for key in own
        if key in weights and _kind(weights[key]) != _kind(own[key])
    ]
    if wrong:
        raise UserError(
            f"{source} holds the weights of another architecture",
            expected=f"{len(own)} tensors of {type(module).__name__}",
            found=f"{len(wrong)} differences, first: {'; '.join(wrong[:3])}",
            remedy="use the options the checkpoint was trained with, or train again",
        )
    module.load_state_dict(dict(weights))
