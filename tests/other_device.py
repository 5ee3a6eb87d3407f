"""A device that is not the host, for checks of what is meant for a GPU where there is none.

Its tensors lie on the host in truth and every sum is done there. But PyTorch and the toolkit take them for tensors of
another device: whoever mixes them with tensors of the host gets an error, and so does a fused step over tensors that
lie in memory in different ways, as on a GPU. What is known to make the host wait for the device (``WAITS_FOR``,
indexing by truth, copies) is written down with the line that asked.

PyTorch has one such device in reserve for others to fill ("PrivateUse1"); it belongs to a whole process, so whoever
imports this does so in a process of its own. What it cannot show: speed, memory, streams, short number formats.
"""

from __future__ import annotations

import traceback
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

REPOSITORY = Path(__file__).resolve().parent.parent
NAME = "elsewhere"

# The answer's size, or the answer itself, is known to the device alone.
WAITS_FOR = {
    "aten::_local_scalar_dense", "aten::_unique2", "aten::bincount", "aten::equal", "aten::histc", "aten::is_nonzero",
    "aten::masked_select", "aten::nonzero", "aten::repeat_interleave", "aten::unique_consecutive", "aten::unique_dim",
}  # fmt: skip
COPIES = {"aten::_to_copy", "aten::copy_"}
INDEXES = {"aten::index", "aten::index_put", "aten::index_put_"}

crossings: list[str] = []  # what made the host and the device wait for each other, and where


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend(rename=NAME, backend_module=_Backend())
DEVICE = torch.device(NAME, 0)
# Else a module that is brought to another layout would keep its tensors and with them the numbers that they stand for.
torch.__future__.set_overwrite_module_params_on_conversion(True)


def note(what: str) -> None:
    """Write down a crossing with the toolkit's line that it came from."""
    lines = [
        frame
        for frame in traceback.extract_stack()
        if REPOSITORY in Path(frame.filename).parents and "site-packages" not in frame.filename
    ]
    line = next((line for line in reversed(lines) if line.filename != __file__), None)
    place = f"{Path(line.filename).relative_to(REPOSITORY)}:{line.lineno}: {line.line}" if line else "?"
    crossings.append(f"{what} at {place}")


class Elsewhere(Tensor):
    """A tensor of that device.

    Attributes:
        inner: the tensor of the host that holds its numbers.
    """

    @staticmethod
    def __new__(cls, inner):
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=DEVICE,
        )  # fmt: skip
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self):
        return f"Elsewhere({self.inner})"

    def tolist(self):
        note("tolist")
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        name, kwargs = func._schema.name, dict(kwargs or {})
        flat, structure = tree_flatten((args, kwargs))
        _check(name, args, flat, kwargs)
        inner, named = tree_unflatten([x.inner if isinstance(x, cls) else x for x in flat], structure)
        arrives = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
        if "device" in named:
            named["device"] = torch.device("cpu")
        named.pop("pin_memory", None)
        answer = func(*inner, **named)
        given = {id(x.inner): x for x in flat if isinstance(x, cls)}  # what was changed in place is given back itself

        def wrapped(x):
            if not isinstance(x, Tensor) or isinstance(x, cls):
                return x
            host = arrives or (name == "aten::copy_" and x is args[0])
            return x if host else given.get(id(x)) if id(x) in given else cls(x)

        return tree_map(wrapped, answer)


def _check(name, args, flat, kwargs) -> None:
    """Refuse what a GPU would refuse, and write down what it would wait for."""
    hosts = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, Elsewhere)]
    if name in WAITS_FOR:
        note(name)
    if name in INDEXES:
        places = [x for x in args[1] if x is not None]
        if any(x.dtype in (torch.bool, torch.uint8) or not isinstance(x, Elsewhere) for x in places):
            note(f"{name} by truth or from the host")
        hosts = [x for x in hosts if not any(x is place for place in places)]
    if name in COPIES:
        to = torch.device(kwargs.get("device") or DEVICE)
        if hosts or to.type == "cpu":
            note(f"{name} between host and device")
    elif any(x.dim() > 0 or "_fused_" in name for x in hosts):  # those read every number on the device
        raise RuntimeError(f"{name}: found tensors on the host and on another device")
    if "_fused_" in name and any(len({x.stride() for x in lists}) > 1 for lists in zip(*args[:4], strict=True)):
        raise RuntimeError(f"{name}: found weights, gradients and moments that lie in memory in different ways")


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return Elsewhere(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    note("made from numbers of the host")
    target.inner.copy_(source.inner if isinstance(source, Elsewhere) else source)
    return target


_library = torch.library.Library("aten", "IMPL")
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")
