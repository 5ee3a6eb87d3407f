"""What a session hands to the live view: each mask under the name of what it is."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.session import TrainingSession
from models.trainer import Examples


def shown(has_mask, draws_masks):
    planes = torch.zeros(2, 1, 4, 4)
    examples = Examples(torch.full((2, 3, 4, 4), 0.5), planes, torch.tensor(has_mask), planes + 0.25)
    trainer = SimpleNamespace(examples=examples, judge=SimpleNamespace(draws_masks=draws_masks))
    return TrainingSession.examples(SimpleNamespace(trainer=trainer))


@pytest.mark.parametrize(
    ("has_mask", "draws_masks", "names"),
    [
        ((True, True), True, ["true mask", "predicted mask"]),
        ((True, False), True, ["true or stand-in mask", "predicted mask"]),
        ((False, False), False, ["stand-in mask"]),
    ],
)
def test_a_stand_in_is_not_called_a_true_mask(has_mask, draws_masks, names):
    smears, masks = shown(has_mask, draws_masks)
    assert (smears.shape, smears.dtype, int(smears.max())) == ((2, 4, 4, 3), np.uint8, 128)
    assert list(masks) == names
    assert masks[names[0]].dtype == bool
    assert all(mask.shape == (2, 4, 4) for mask in masks.values())
