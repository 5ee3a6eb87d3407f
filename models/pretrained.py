"""Where each tier starts from: published ImageNet weights, another run of this toolkit, or chance.

Only backbones of the published sizes have published weights; the tensors' shapes tell. What lies in a cache or came as
a package needs no network. What is left is asked for once: where the first host does not answer within seconds, no
other is waited for. The projection by which the tier before enters a backbone is never touched and stays at zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.backbones import STANDARD
from models.network import TIER_BACKBONES, TIER_KEYS, TIER_NAMES, ThreeTierDCFNet
from models.published import PUBLISHED, Fetched, Online, Published, fetch, host_of, read_published
from util.checkpoint import load_checkpoint
from util.console import ROMAN
from util.errors import UserError
from util.runlog import weights_file

# How what is said of a start begins: ``models.distillation`` goes by it.
IMAGENET, RANDOM = "ImageNet weights", "random weights"
VOICES = "weights"  # of the voices in the verdicts: fitted on another run's validation images, so not taken over


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of what published weights must hold: all but the entry of the tier before and the counters of batches.

    The counters came to PyTorch late, older files lack them, and nothing reads them.
    """
    return {
        key: tuple(value.shape)
        for key, value in weights.items()
        if not key.startswith("entry.") and not key.endswith("num_batches_tracked")
    }


def _fill(backbone: nn.Module, path: Path) -> None:
    """Copy published weights into a backbone; every tensor must find its own, by name and shape."""
    weights = read_published(path)
    own, given = _shapes(backbone.state_dict()), _shapes(weights)
    wrong = [f"{key}: {given.get(key, 'missing')}" for key in own if given.get(key) != own[key]]
    wrong += [f"{key}: unknown" for key in given if key not in own]
    if wrong:
        raise UserError(
            f"{path} does not hold the weights of {type(backbone).__name__}",
            expected=f"{len(own)} tensors by name and shape",
            found=f"{len(wrong)} differences, first: {'; '.join(wrong[:3])}",
            remedy="remove it, or use --pretrained none",
        )
    _check_finite(weights, path)
    backbone.load_state_dict(weights, strict=False)


def _check_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    bad = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if bad:
        found = f"NaN or infinity in {len(bad)} tensors, first {bad[0]}"
        raise UserError(f"{path} holds no usable weights", found=found, remedy="use another file, or train it again")


def _tiers(keys: Iterable[str]) -> str:
    names = dict(zip(TIER_KEYS, TIER_NAMES, strict=True))
    return " and ".join(f"Tier-{ROMAN[key]} ({names[key]})" for key in keys)


def _report(wanted: Mapping[str, Online], fetched: Fetched) -> None:
    """Print, in one line, what came of the try."""
    got = ", ".join(title for title, _ in fetched.files.values())
    missing = [tier for tier in wanted if tier not in fetched.files]
    parts = [f"fetched {got}"] if got else []
    parts += [f"none for {_tiers(missing)}, which start from random weights ({fetched.detail})"] if missing else []
    print(f"ImageNet weights: {'; '.join(parts)}", flush=True)


def _must_have(wanted: Mapping[str, Online], fetched: Fetched) -> None:
    missing = [tier for tier in wanted if tier not in fetched.files]
    if missing:
        raise UserError(
            f"--pretrained imagenet: no ImageNet weights for {_tiers(missing)}",
            expected=", ".join(f"{wanted[tier].title} from {host_of(wanted[tier])} or its cache" for tier in missing),
            found=fetched.detail,
            remedy="train once with a network (the weights are kept), copy the caches of a computer that has them "
            "(HF_HOME, TORCH_HOME), or use --pretrained auto",
        )


def _with_published_sizes(network: ThreeTierDCFNet) -> dict[str, Published]:
    """The tiers whose RGB backbones have the names and shapes of the published networks."""
    with torch.device("meta"):
        standard = [_shapes(backbone(3, STANDARD).state_dict()) for backbone in TIER_BACKBONES]
    tiers = zip(TIER_KEYS, network.tiers, standard, PUBLISHED, strict=True)
    return {key: one for key, tier, shapes, one in tiers if _shapes(_backbone(tier).state_dict()) == shapes}


def _backbone(tier: nn.Module) -> nn.Module:
    return cast(nn.Module, tier.rgb)


def _published_starts(network: ThreeTierDCFNet, *, required: bool) -> dict[str, str]:
    published = _with_published_sizes(network)
    if required and not published:
        raise UserError(
            f"--pretrained imagenet: no tier of --preset {network.architecture.preset} has published weights",
            expected="a backbone of the published size",
            remedy="use --preset full, or --pretrained auto",
        )
    files = {key: found for key, one in published.items() if (found := one.local())}
    wanted = {key: one.online for key, one in published.items() if key not in files}
    fetched = fetch(wanted) if wanted else Fetched({})
    if required:
        _must_have(wanted, fetched)
    if wanted:
        _report(wanted, fetched)
    starts = dict.fromkeys(TIER_KEYS, f"{RANDOM} (no published weights of this width)")
    starts |= {key: f"{RANDOM} ({fetched.why}; {one.title} not in the cache)" for key, one in wanted.items()}
    for key, (title, path) in (files | fetched.files).items():
        _fill(_backbone(network.tiers[TIER_KEYS.index(key)]), path)
        starts[key] = f"{IMAGENET} ({title})"
    return starts


def packaged_backbone(tier: int) -> nn.Module | None:
    """A tier's (0-based) RGB backbone of the published size, without a tier before, with the weights of a package.

    These are the same on every computer, which a cache's need not be.

    Returns:
        It, on the CPU; None where no package has such weights, or it is not installed.

    Raises:
        UserError: they are damaged, or of another layout.
    """
    package = PUBLISHED[tier].package
    path = package.local() if package else None
    if path is None:
        return None
    backbone = TIER_BACKBONES[tier](3, STANDARD)
    _fill(backbone, path)
    return backbone


def _read_run(path: Path) -> dict[str, Any]:
    """What a run saved with its weights.

    Raises:
        UserError: the file is a pickle, damaged, or holds something else.
    """
    expected = "weights that 3TDCFNet_train.py wrote (best_net_3TDCFNet.safetensors)"
    remedy = "use weights written by this toolkit, or leave --init_from out"
    try:
        content = load_checkpoint(path)
    except UserError as error:
        found = error.found or error.what
        raise UserError(f"--init_from {path} cannot be used", expected=expected, found=found, remedy=remedy) from None
    kinds = {"architecture": dict, "network": dict, "epoch": int, "open_tiers": int, "starts": dict}
    stored = content if isinstance(content, dict) else {}
    wrong = [key for key, kind in kinds.items() if not isinstance(stored.get(key), kind)]
    if wrong:
        found = f"a checkpoint without {', '.join(wrong)}"
        raise UserError(f"--init_from {path} holds no network", expected=expected, found=found, remedy=remedy)
    return stored


def _matching(network: ThreeTierDCFNet, stored: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The stored tensors that the network has under the same name and in the same shape.

    Raises:
        UserError: they are of another preset or lack part of an RGB backbone.
    """
    preset, theirs = network.architecture.preset, stored["architecture"].get("preset")
    if theirs != preset:
        raise UserError(
            f"--init_from {path} is of another preset",
            expected=f"--preset {preset}",
            found=f"--preset {theirs}",
            remedy=f"use --preset {theirs} here too, or other weights",
        )
    own = {key: value for key, value in network.state_dict().items() if key != VOICES}
    weights = {key: value for key, value in stored["network"].items() if isinstance(value, Tensor) and key in own}
    weights = {key: value for key, value in weights.items() if value.shape == own[key].shape}
    backbones = [key for key in own if re.match(r"tiers\.\d\.rgb\.", key)]
    missing = [key for key in backbones if key not in weights]
    if missing:
        raise UserError(
            f"--init_from {path} is of another layout",
            expected=f"the {len(backbones)} tensors of the three RGB backbones",
            found=f"{len(missing)} of them missing or of another shape, first {missing[0]}",
            remedy="use weights written by this version of the toolkit, or leave --init_from out",
        )
    return weights


def _run_starts(network: ThreeTierDCFNet, path: Path) -> dict[str, str]:
    stored = _read_run(path)
    weights = _matching(network, stored, path)
    _check_finite(weights, path)
    network.load_state_dict(weights, strict=False)
    left = [key for key in network.state_dict() if key not in weights and key != VOICES]
    if left:
        names = ", ".join(left[:4]) + (", ..." if len(left) > 4 else "")
        print(f"--init_from {path}: {len(weights)} tensors taken, {len(left)} not in it or of another shape: {names}")
    starts = {}
    for index, key in enumerate(TIER_KEYS):
        closed = "" if index < stored["open_tiers"] else ", where it had not opened"
        before = stored["starts"].get(key)
        starts[key] = f"weights of {path}, epoch {stored['epoch']}{closed}" + (f" (from {before})" if before else "")
    return starts


def load_starts(network: ThreeTierDCFNet, pretrained: str, init_from: str, checkpoints_dir: str) -> dict[str, str]:
    """Load what each tier starts from into a new network; prints a line where the network was or would be asked.

    Args:
        network: as built, on the CPU; its weights are replaced in place.
        pretrained: "auto" takes the ImageNet weights that can be had, "imagenet" insists on them, "none" takes none.
        init_from: a weights file of another run or the run's name; ``pretrained`` then counts for nothing.
        checkpoints_dir: the folder of the runs.

    Returns:
        By tier key, what it starts from, in words for every output.

    Raises:
        UserError: what was asked for cannot be had; a file is damaged, of another layout or preset, or a pickle.
    """
    if init_from:
        return _run_starts(network, weights_file(init_from, checkpoints_dir))
    if pretrained == "none":
        return dict.fromkeys(TIER_KEYS, f"{RANDOM} (--pretrained none)")
    return _published_starts(network, required=pretrained == "imagenet")
