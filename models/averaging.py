"""A running average of a network's weights, which judges better than the weights of any single step."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

WARM_UP = 10.0  # the average begins short, so that it does not remember the random start


class WeightAverage:
    """Exponential moving average of a network's weights and batch statistics (Polyak & Juditsky, 1992).

    Args:
        network: what is averaged; it is copied.
        decay: share of the old average that a step keeps, in (0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self._pair(network)

    def _pair(self, network: nn.Module) -> None:
        """Remember which tensors belong together: those that are averaged, and counts, which are copied."""
        own = self.network.state_dict()
        both = [(own[key], value) for key, value in network.state_dict().items()]
        floats = [pair for pair in both if pair[0].is_floating_point()]
        counts = [pair for pair in both if not pair[0].is_floating_point()]
        self._averaged = [mine for mine, _ in floats], [theirs for _, theirs in floats]
        self._copied = [mine for mine, _ in counts], [theirs for _, theirs in counts]

    @torch.no_grad()
    def update(self) -> None:
        """Take one step's weights in; nothing waits for the device."""
        self.steps += 1
        kept = min(self.decay, self.steps / (WARM_UP + self.steps))
        mine, theirs = self._averaged
        torch._foreach_lerp_(mine, theirs, 1.0 - kept)
        counts, current = self._copied
        if counts:
            torch._foreach_copy_(counts, current)

    def state(self) -> dict[str, Any]:
        """What is needed to go on."""
        return {"network": dict(self.network.state_dict()), "steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` gave."""
        self.network.load_state_dict(state["network"])
        self.steps = int(state["steps"])
