"""The number formats that a step computes in: bfloat16 or float16 on GPUs, float32 on CPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def low_precision(device: torch.device) -> torch.dtype | None:
    """The short format for convolutions: bfloat16 where the GPU has it, else float16; None on CPUs, which have neither.

    A CPU takes 2.5 to 19 times as long in bfloat16 as in float32.
    """
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which convolutions compute in the short format that suits the device; nothing changes on a CPU."""
    dtype = low_precision(device)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def describe_precision(device: torch.device) -> str:
    """The format by its name, for logs and tables: bfloat16, float16 with scaled losses, or float32."""
    names = {None: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16 with scaled losses"}
    return names[low_precision(device)]


def fuses_steps(device: torch.device) -> bool:
    """Whether an optimiser takes its step in few kernels: on GPUs, where starting one for each tensor takes longer."""
    return device.type != "cpu"


class MixedPrecision:
    """Learning in the format that suits a device; one for each optimiser.

    In float16 small gradients vanish, so the loss is scaled up before it is differentiated and the gradients down
    before the step (Micikevicius et al., ICLR 2018); a step whose gradients are not finite is left out and the scale
    lowered. In the other formats every call is the plain one, and nothing waits for the device.

    Args:
        device: where the network is.
        dtype: the short format, None for float32; without it the one that suits the device.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None | str = "auto") -> None:
        self.device = device
        self.dtype = low_precision(device) if isinstance(dtype, str) else dtype
        self.scaler = torch.amp.GradScaler(device.type) if self.dtype == torch.float16 else None

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context of the forward pass."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Differentiate a loss."""
        scaled: Tensor = loss if self.scaler is None else self.scaler.scale(loss)
        torch.autograd.backward(scaled)

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Iterable[nn.Parameter] = (),
        largest_gradient: float | None = None,
    ) -> None:
        """Take a step, the gradients of ``parameters`` first clipped to a norm if one is given."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        if largest_gradient is not None:
            nn.utils.clip_grad_norm_(parameters, largest_gradient)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def state(self) -> dict[str, Any]:
        """What is needed to go on: the scale and how long it has held; nothing where losses are not scaled."""
        return {} if self.scaler is None else dict(self.scaler.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` gave; a state of a device that scaled otherwise begins the scale anew."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)
