"""Convolutions for judging on a CPU: such as pad no copy of the features, and such as activate or add what they write.

A pass over a large map takes as long as a thin convolution. oneDNN applies an activation to what it is about to write,
or adds it to what is there. PyTorch's compiler calls it so, through operators that are not public: they are tried
before they are used, and where they are absent or compute anything else, activations and sums stay passes of their own.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# oneDNN's name of each activation that it can apply, and its constants.
ACTIVATIONS: dict[Any, tuple[str, list[float]]] = {nn.ReLU: ("relu", []), nn.ReLU6: ("hardtanh", [0.0, 6.0])}
# What is tried before any is fused.
TRIED: tuple[dict[str, Any], ...] = (
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1, "bias": False},
    {"kernel_size": 3, "padding": 1, "groups": 8},
    {"kernel_size": 4, "padding": 1, "stride": 2, "groups": 8, "bias": False},
)
TOLERANCE = 1e-4  # how far a fused convolution may lie from its parts one after the other


class HalvingConvolution(nn.Module):
    """A convolution of stride 2 with TensorFlow's "same" padding that pads no copy of the features.

    That padding is one pixel more after than before where a side is even. A kernel with a row and a column of zeros in
    front, padded alike on both sides, gives the same sums; timm copies the features into a larger, zeroed map, which
    takes longer than a depthwise convolution itself.

    Args:
        convolution: with an odd kernel, as :meth:`can_stand_for` says.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.bias, self.groups = convolution.bias, convolution.groups
        self.stride, self.dilation = (2, 2), (1, 1)
        height, width = convolution.weight.shape[-2:]
        self.padding = (height // 2, width // 2)
        last = convolution.weight.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        for even_height in (0, 1):
            for even_width in (0, 1):
                weight = functional.pad(convolution.weight, (even_width, 0, even_height, 0))
                self.register_buffer(f"weight{even_height}{even_width}", weight.contiguous(memory_format=layout))

    @staticmethod
    def can_stand_for(module: nn.Conv2d) -> bool:
        """Whether a module is such a convolution, of timm's class, on a CPU.

        A GPU has quick kernels for the odd sides that depthwise convolutions usually have, and copies faster.
        """
        from timm.layers import Conv2dSame

        return (
            isinstance(module, Conv2dSame)
            and module.weight.device.type == "cpu"
            and tuple(module.stride) == (2, 2)
            and tuple(module.dilation) == (1, 1)
            and all(side % 2 for side in module.kernel_size)
        )

    def weight_for(self, features: Tensor) -> Tensor:
        """The kernel for features (B, C, H, W): with zeros in front where a side is even."""
        height, width = features.shape[-2:]
        return self.get_buffer(f"weight{1 - height % 2}{1 - width % 2}")

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, H, W) to (B, D, H/2, W/2), halves rounded up."""
        return functional.conv2d(features, self.weight_for(features), self.bias, 2, self.padding, 1, self.groups)


class FusedConvolution(nn.Module):
    """A convolution that activates what it writes, or adds it to a map that is there.

    Its ReLU makes zero of what is not a number, where PyTorch's keeps it: not for weights that are not finite.

    Args:
        convolution: a plain one or a :class:`HalvingConvolution`, on a CPU and without gradients.
        activation: one of ``ACTIVATIONS``, or None.
    """

    def __init__(self, convolution: nn.Module, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.convolution = convolution
        self.unary, self.constants = ACTIVATIONS[type(activation)] if activation is not None else ("none", [])

    @staticmethod
    def can_stand_for(convolution: nn.Module | None, activation: nn.Module | None) -> bool:
        """Whether a module is a convolution, followed by an activation if any, that can be fused on this machine."""
        known = type(convolution) is HalvingConvolution
        if type(convolution) is nn.Conv2d:
            known = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
        return known and (activation is None or type(activation) in ACTIVATIONS) and fuses()

    @staticmethod
    def can_add(activation: nn.Module | None) -> bool:
        """Whether oneDNN applies an activation, or none, to a sum: it knows ReLU only."""
        return activation is None or type(activation) is nn.ReLU

    def _arguments(self, features: Tensor) -> tuple[Any, ...]:
        given: Any = self.convolution
        weight = given.weight_for(features) if isinstance(given, HalvingConvolution) else given.weight
        return features, weight, given.bias, given.padding, given.stride, given.dilation, given.groups

    def forward(self, features: Tensor) -> Tensor:
        """Convolve features (B, C, H, W), and activate."""
        written: Tensor = _operators()._convolution_pointwise(
            *self._arguments(features), self.unary, self.constants, ""
        )
        return written

    def add_to(self, other: Tensor, features: Tensor) -> Tensor:
        """Add the convolution of features (B, C, H, W) to a map, in its place, and activate it; see :meth:`can_add`."""
        unary = None if self.unary == "none" else self.unary
        added: Tensor = _operators()._convolution_pointwise_.binary(
            other, *self._arguments(features), "add", 1.0, unary, self.constants, None
        )
        return added


def _operators() -> Any:
    return torch.ops.mkldnn


def fuses() -> bool:
    """Whether convolutions can be fused: oneDNN is there and switched on, and the operators agree with their parts."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled) and operators_agree()


@functools.cache
def operators_agree() -> bool:
    """Whether this PyTorch has the operators, and they say what their parts do of kinds of convolution as here."""
    drawn = torch.Generator().manual_seed(0)  # its own: a training that judges must not notice
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return all(_agrees(_drawn_convolution(drawn, **kind), drawn) for kind in TRIED)
    except (RuntimeError, AttributeError, TypeError):
        return False


def _drawn_convolution(drawn: torch.Generator, **kind: Any) -> nn.Conv2d:
    given: dict[str, Any] = {**kind, "device": "meta", "dtype": torch.float32}
    convolution = nn.Conv2d(8, 8, **given).to_empty(device="cpu").requires_grad_(False)
    for parameter in convolution.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=drawn, dtype=torch.float32))
    return convolution.to(memory_format=torch.channels_last)


def _agrees(convolution: nn.Conv2d, drawn: torch.Generator) -> bool:
    """Whether a convolution says the same fused and in parts, with each activation and added to another map."""
    shape, last = (2, convolution.in_channels, 9, 8), {"memory_format": torch.channels_last}
    features = 4 * torch.randn(shape, generator=drawn, dtype=torch.float32).contiguous(**last)  # sums go beyond 6
    alone = convolution(features)
    for activation in (nn.ReLU(), nn.ReLU6(), None):
        fused, activate = FusedConvolution(convolution, activation), activation or nn.Identity()
        pairs = [(fused(features), activate(alone))]
        if FusedConvolution.can_add(activation):
            pairs.append((fused.add_to(alone.flip(3).contiguous(**last), features), activate(alone.flip(3) + alone)))
        if not all(torch.allclose(*pair, rtol=TOLERANCE, atol=TOLERANCE) for pair in pairs):
            return False
    return True
