"""The code in docs/extending.md works as it stands there, and each piece is as short as was promised."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import readers
from data.groups import group_ids
from models import network as network_module
from models.network import Architecture, ThreeTierDCFNet

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
LAYOUT, BACKBONE = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def defined(code):
    names = {"__name__": "extension"}
    exec(compile(code, "docs/extending.md", "exec"), names)  # noqa: S102 - it is our own text
    return names


def test_each_is_under_forty_lines():
    assert max(len(code.splitlines()) for code in (LAYOUT, BACKBONE)) < 40


def test_the_layout_is_read_and_patients_are_not_parted(tmp_path, monkeypatch):
    for name in ("healthy_17/a.png", "healthy_17/b.png", "anemic_4/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / name)
    names = defined(LAYOUT)
    layout = readers.Layout(
        "patient folders", names["LOOKED_FOR"], names["is_patient_folders"], names["read_patient_folders"]
    )
    monkeypatch.setattr(readers, "LAYOUTS", (*readers.LAYOUTS, layout))
    records = readers.read_dataroot(tmp_path)
    assert [(record.name, record.label) for record in records] == [
        ("anemic_4/a.png", 1), ("healthy_17/a.png", 0), ("healthy_17/b.png", 0),
    ]  # fmt: skip
    groups = group_ids(records, [record.name for record in records])
    assert groups[1] == groups[2] != groups[0]


@pytest.mark.parametrize("tier", [0, 2])
def test_the_backbone_takes_a_tier_s_place_and_learns(tier, monkeypatch):
    backbones = list(network_module.TIER_BACKBONES)
    backbones[tier] = defined(BACKBONE)["ResNetPyramid"]
    monkeypatch.setattr(network_module, "TIER_BACKBONES", tuple(backbones))
    network = ThreeTierDCFNet(Architecture("small", 64))
    network.tunes_earlier = True
    network.open(3)
    rgb, mask = torch.rand(2, 3, 64, 64), torch.zeros(2, 1, 64, 64)
    output = network(rgb, mask, torch.tensor([True, False]))
    assert output.logits.shape == (2, 4) and output.mask_logit.shape == (2, 1, 64, 64)
    output.voices[:, tier].sum().backward()
    tuned = network.tiers[tier]
    assert float(tuned.head.bias.grad.abs()) > 0  # the head starts at zero, so at first nothing passes below it
    tuned.head.weight.data.fill_(0.1)
    network(rgb, mask, torch.tensor([True, False])).voices[:, tier].sum().backward()
    assert all(float(next(part.parameters()).grad.abs().sum()) > 0 for part in (tuned.rgb.stem, tuned.merge_rgb))
