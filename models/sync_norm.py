"""Batch normalisation over all processes of a run: the statistics of the whole batch, not of each process's share."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from util.distributed import Ranks


def synchronise_norms(network: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Let every batch normalisation of a network see the whole batch; the names of its tensors stay.

    On GPUs by torch's own ``SyncBatchNorm`` (through timm, which has layers of its own), which CPUs do not have.

    Args:
        network: changed in place where that is possible.
        ranks: the processes that share a batch.
        device: where the network will be.
    """
    if not ranks.several:
        return network
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        return cast(nn.Module, convert_sync_batchnorm(network))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            _share_statistics(module)
    return network


def _share_statistics(norm: nn.BatchNorm2d) -> None:
    """Make one layer take its statistics from all processes; what timm's layers do after the norm is kept."""
    own = type(norm)

    class Shared(own):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                return cast(Tensor, super().forward(x))
            normed = shared_batch_norm(x, self)
            for name in ("drop", "act"):
                layer = getattr(self, name, None)
                normed = layer(normed) if isinstance(layer, nn.Module) else normed
            return normed

    norm.__class__ = Shared


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all processes; each one's loss depends on every one's part of it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        whole = own.clone()
        torch.distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        whole = gradient.contiguous().clone()
        torch.distributed.all_reduce(whole)
        return whole


def _sum_over_ranks(own: Tensor) -> Tensor:
    return cast(Tensor, _SumOverRanks.apply(own))


def shared_batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Normalise (B, C, H, W) by mean and variance over all processes' B, H and W; running statistics follow."""
    axes = (0, 2, 3)
    count = x.new_full((1,), x.numel() // x.shape[1])
    torch.distributed.all_reduce(count)
    mean = _sum_over_ranks(x.sum(axes)) / count
    centred = x - mean.view(1, -1, 1, 1)
    variance = _sum_over_ranks((centred**2).sum(axes)) / count
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
            share = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked or 1)
            norm.running_mean.lerp_(mean, share)
            norm.running_var.lerp_(variance * count / (count - 1), share)
    normed = centred * (variance + norm.eps).rsqrt().view(1, -1, 1, 1)
    if norm.weight is None:
        return normed
    return torch.addcmul(norm.bias.view(1, -1, 1, 1), normed, norm.weight.view(1, -1, 1, 1))
