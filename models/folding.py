"""A network made quicker for judging alone: batch normalisation folded into the convolutions beside it.

In evaluation a batch normalisation is a fixed scale and shift of each channel, which a convolution after or before it
can do at no cost (Jacob et al., CVPR 2018, section 3.2). The verdicts are the same but for rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models.backbones import DenseNetPyramid, EfficientNetPyramid, PyramidMerge
from models.convolutions import FusedConvolution, HalvingConvolution
from models.network import ThreeTierDCFNet
from models.rearranged import pad_outputs, rearrange

Network = TypeVar("Network", bound=nn.Module)

SMALLEST_SCALE = 1e-20  # below it a channel is its shift alone; dividing by less would overflow
# timm's names of a convolution and the normalisation after it: in EfficientNet itself and in its two kinds of block.
ENDS = (("conv_stem", "bn1"), ("conv_head", "bn2"))
SEPARABLE = (("conv_dw", "bn1"), ("conv_pw", "bn2"))
INVERTED = (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))


def folded(network: Network) -> Network:
    """A copy of a network for judging alone, in evaluation and without gradients; the network itself stays as it is.

    It may also be a lone backbone. The copy keeps the weights as they are now: make another one once they have
    changed. It cannot be trained, and its state has other names, so it is never saved.
    """
    quick = copy.deepcopy(network).eval().requires_grad_(False)
    with torch.no_grad():
        for module in list(quick.modules()):
            for kind, fold in FOLDS.items():
                if isinstance(module, kind):
                    fold(module)
            if hasattr(module, "conv_dw"):
                _fold_named(module, _pairs(module))
        numbers = [*network.state_dict().values(), *quick.parameters()]  # as they were, and as folding made them
        rearranges = numbers[0].device.type == "cpu" and all(tensor.isfinite().all() for tensor in numbers)
        for module in list(quick.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Conv2d) and HalvingConvolution.can_stand_for(child):
                    setattr(module, name, HalvingConvolution(child))
        # Of weights that are not finite a fused convolution could make verdicts that are: see there.
        if rearranges:
            if isinstance(quick, ThreeTierDCFNet):
                rearrange(quick)
            for module in list(quick.modules()):
                _fuse(module)
    return quick


def _fuse(module: nn.Module) -> None:
    """Let the convolutions of a module activate what they write, where they can; identities stay in their place."""
    for convolution, activation in _pairs(module):
        first, second = module._modules[convolution], module._modules[activation]
        if first is not None and second is not None and FusedConvolution.can_stand_for(first, second):
            module._modules[convolution] = FusedConvolution(first, second)
            module._modules[activation] = nn.Identity()


def _pairs(module: nn.Module) -> Sequence[tuple[str, str]]:
    """Names of a convolution and of what follows it: a normalisation or, once that is folded, an activation."""
    if isinstance(module, nn.Sequential):
        names = [name for name, part in module._modules.items() if type(part) is not nn.Identity]
        return list(zip(names, names[1:], strict=False))
    if isinstance(module, EfficientNetPyramid):
        return ENDS
    if isinstance(module, FoldedDenseLayer):
        return (("conv1", "activate"),)
    if hasattr(module, "conv_dw"):
        return INVERTED if hasattr(module, "conv_pwl") else SEPARABLE
    return ()


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a batch normalisation does to each channel in evaluation: scale (C,) and shift (C,)."""
    state: Any = norm
    scale = state.weight * torch.rsqrt(state.running_var + state.eps)
    return scale, state.bias - state.running_mean * scale


def _set(convolution: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
    last = convolution.weight.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    convolution.weight = nn.Parameter(weight.contiguous(memory_format=layout), requires_grad=False)
    convolution.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)


def _normalise_after(convolution: nn.Conv2d, scale: Tensor, shift: Tensor | None) -> None:
    """Let a convolution do what the normalisation after it does; without a shift it keeps having none."""
    bias = convolution.bias
    if shift is not None:
        bias = shift if bias is None else bias * scale + shift
    _set(convolution, convolution.weight * scale.view(-1, 1, 1, 1), bias)


def fold_sequence(sequence: nn.Sequential) -> None:
    """Fold each plain normalisation that follows a convolution directly, in its place; an identity is left there."""
    names = list(sequence._modules)
    for before, after in zip(names, names[1:], strict=False):
        convolution, norm = sequence._modules[before], sequence._modules[after]
        plain = isinstance(norm, nn.modules.batchnorm._BatchNorm) and not hasattr(norm, "act")
        if isinstance(convolution, nn.Conv2d) and plain:
            _normalise_after(convolution, *scale_and_shift(norm))
            sequence._modules[after] = nn.Identity()


def _fold_named(module: Any, pairs: Sequence[tuple[str, str]]) -> None:
    """Fold timm's normalisations, of which the activation that is part of them stays."""
    for convolution, name in pairs:
        norm = getattr(module, name)
        _normalise_after(getattr(module, convolution), *scale_and_shift(norm))
        setattr(module, name, norm.act)


def _fold_merge(merge: Any) -> None:
    """Scale every lateral and shift with the finest: resizing, averaging and adding keep scale and shift."""
    scale, shift = scale_and_shift(merge.activate[0])
    for index, lateral in enumerate(merge.laterals):
        _normalise_after(lateral, scale, None if index else shift)
    merge.activate = nn.ReLU(inplace=True)


def _fold_dense(pyramid: Any) -> None:
    """Fold DenseNet's stem, blocks and transitions; what is normalised last goes to several places and stays."""
    for name, layer in list(pyramid.features.named_children()):
        if name.startswith("denseblock"):
            setattr(pyramid.features, name, FoldedDenseBlock(list(layer.values())))
        elif name.startswith("transition"):
            layer.norm = Clamp.folding(layer.norm, layer.conv)
    _fold_named(pyramid.features, (("conv0", "norm0"),))


class Clamp(nn.Module):
    """Normalisation and ReLU before a convolution, in one pass over the features.

    relu(s x + b) = s clamp(x, t) + b with t = -b / s, clamped from below for s > 0 and from above for s < 0. The clamp
    is left to be done here; s and b go into the convolution that follows.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low.view(1, -1, 1, 1))
        self.register_buffer("high", high.view(1, -1, 1, 1))

    @classmethod
    def folding(cls, norm: nn.Module, convolution: nn.Conv2d) -> Clamp:
        """Fold a normalisation with ReLU into the 1x1 convolution that follows, and give what is left to do."""
        scale, shift = scale_and_shift(norm)
        constant = scale.abs() < SMALLEST_SCALE  # such a channel is relu(b) everywhere: clamped to zero, times zero
        threshold = torch.where(constant, 0.0, -shift / scale.masked_fill(constant, 1.0))
        infinite = torch.full_like(threshold, torch.inf)
        scale, shift = scale.masked_fill(constant, 0.0), torch.where(constant, shift.relu(), shift)
        weight = convolution.weight
        shifted = (weight * shift.view(1, -1, 1, 1)).sum(dim=(1, 2, 3))
        _set(convolution, weight * scale.view(1, -1, 1, 1), shifted if convolution.bias is None else None)
        return cls(torch.where(scale >= 0, threshold, -infinite), torch.where(scale > 0, infinite, threshold))

    def forward(self, features: Tensor) -> Tensor:
        """Clamp features (B, C, h, w), channel by channel."""
        return torch.clamp(features, self.low.to(features.dtype), self.high.to(features.dtype))


class FoldedDenseLayer(nn.Module):
    """A DenseNet layer without normalisations."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.conv1, self.conv2, self.activate = layer.conv1, layer.conv2, layer.norm2.act
        self.growth = layer.conv2.out_channels
        self.clamp = Clamp.folding(layer.norm1, layer.conv1)
        _normalise_after(self.conv1, *scale_and_shift(layer.norm2))
        if self.conv2.weight.device.type == "cpu":
            pad_outputs(self.conv2)

    def forward(self, features: Tensor) -> Tensor:
        """New features (B, growth, h, w) from all before (B, C, h, w)."""
        grown: Tensor = self.conv2(self.activate(self.conv1(self.clamp(features))))
        return grown[:, : self.growth]


class FoldedDenseBlock(nn.Module):
    """A DenseNet block that writes each layer's features beside those before, so that none are copied together."""

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FoldedDenseLayer(layer) for layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C + layers x growth, h, w)."""
        last = x.is_contiguous(memory_format=torch.channels_last)
        filled = x.shape[1]
        grown: list[Any] = list(self.layers)
        shape = (len(x), filled + sum(layer.growth for layer in grown), *x.shape[2:])
        layout = torch.channels_last if last else torch.contiguous_format
        features = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
        features[:, :filled] = x
        for layer in grown:
            features[:, filled : filled + layer.growth] = layer(features[:, :filled])
            filled += layer.growth
        return features


FOLDS: dict[type[nn.Module], Callable[[Any], None]] = {
    PyramidMerge: _fold_merge,
    DenseNetPyramid: _fold_dense,
    EfficientNetPyramid: lambda pyramid: _fold_named(pyramid, ENDS),
    nn.Sequential: fold_sequence,
}
