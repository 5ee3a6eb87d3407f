"""The conditional PatchGAN that judges masks, and the history of masks it is shown again."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """70x70 PatchGAN (Isola et al., CVPR 2017) on the smear and a mask of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        layers: list[nn.Module] = [nn.Conv2d(4, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        for before, after, stride in ((widths[0], widths[1], 2), (widths[1], widths[2], 2), (widths[2], 8 * width, 1)):
            layers += [
                nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=False),
                nn.InstanceNorm2d(after, affine=True),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.judge = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))

    def forward(self, rgb: Tensor, mask: Tensor) -> Tensor:
        """Score each patch of a smear (B, 3, H, W) in [0, 1] with its mask (B, 1, H, W) in [0, 1]: (B, 1, h, w)."""
        scores: Tensor = self.judge(torch.cat([rgb, mask], dim=1))
        return scores


class MaskHistory:
    """A buffer of generated masks with their smears (Shrivastava et al., CVPR 2017: the image pool).

    Half of the masks that the discriminator sees are earlier ones, so that it does not forget what the generator did.
    The buffer lives on the device as bytes; which entries are swapped is drawn on the host, so nothing waits.

    Args:
        size: pairs kept; 0 keeps none and returns what it is given.
        seed: of the draws.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.draws = torch.Generator().manual_seed(seed)
        self.pairs: Tensor | None = None
        self.filled = 0

    def exchange(self, rgb: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Put new pairs in and give back as many, each the new one or an earlier one by a coin's fall.

        Args:
            rgb: (B, 3, H, W) in [0, 1].
            mask: (B, 1, H, W) in [0, 1], generated.
        """
        if self.size == 0:
            return rgb, mask
        new = (torch.cat([rgb, mask], dim=1).detach() * 255).round().to(torch.uint8)
        if self.pairs is None or self.pairs.shape[1:] != new.shape[1:]:
            self.pairs = torch.zeros((self.size, *new.shape[1:]), dtype=torch.uint8, device=new.device)
            self.filled = 0
        given = new.clone()
        for position in range(len(new)):
            self._exchange_one(self.pairs, new, given, position)
        old = given.to(rgb.dtype) / 255
        return old[:, :3], old[:, 3:]

    def _exchange_one(self, pairs: Tensor, new: Tensor, given: Tensor, position: int) -> None:
        if self.filled < self.size:
            pairs[self.filled] = new[position]
            self.filled += 1
        elif torch.rand((), generator=self.draws) < 0.5:
            slot = int(torch.randint(self.size, (), generator=self.draws))
            given[position] = pairs[slot]
            pairs[slot] = new[position]

    def state(self) -> dict[str, object]:
        """What is needed to go on: the pairs, how many are filled and the state of the draws."""
        return {"pairs": self.pairs, "filled": self.filled, "draws": self.draws.get_state()}

    def load_state(self, state: dict[str, object], device: torch.device) -> None:
        """Restore what ``state`` gave."""
        pairs = state["pairs"]
        self.pairs = pairs.to(device) if isinstance(pairs, Tensor) else None
        self.filled = int(state["filled"])  # type: ignore[call-overload]
        self.draws.set_state(state["draws"])  # type: ignore[arg-type]
        if self.pairs is not None and len(self.pairs) != self.size:  # --pool_size was changed
            self.pairs, self.filled = None, 0
