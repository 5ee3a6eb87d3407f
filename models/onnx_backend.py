"""Running an exported network through ONNX Runtime in the place of PyTorch: ``--backend onnx``."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.inference import SmearBatch, predict, see_all, see_none
from models.judges import Said
from models.novelty import digest_of, read_reference
from models.saved import SavedNetwork
from util.errors import UserError

SUFFIX = ".onnx"
PACKAGES = ("onnx", "onnxruntime")
FORMAT = "3TDCFNet network"
INPUTS = ("image", "mask")
OUTPUTS = ("probabilities", "mask_probability", "voices", "features")


def require_packages(names: Sequence[str] = PACKAGES) -> None:
    """Raise UserError unless these packages are installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX needs packages that are not installed: {', '.join(missing)}",
            remedy=f"pip install {' '.join(PACKAGES)}",
        )


class OnnxModel:
    """An ONNX model of this toolkit on the CPU.

    Args:
        content: the model's bytes, or its file.
        threads: that one call works with; 0 is as many as there are cores.

    Attributes:
        facts: its metadata, text by name.
        inputs: names of what it takes.

    Raises:
        UserError: ONNX Runtime is not installed, or the file is missing, damaged or of something else.
    """

    def __init__(self, content: bytes | Path, *, threads: int = 0) -> None:
        require_packages(PACKAGES[-1:])
        if isinstance(content, Path) and not content.is_file():
            raise UserError(
                f"no exported network at {content}",
                remedy="export it first: python 3TDCFNet_export.py --name NAME --to onnx",
            )
        self._session = _session(content, threads)
        try:
            self.facts: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
            self.inputs = [item.name for item in self._session.get_inputs()]
            outputs = tuple(item.name for item in self._session.get_outputs())
        except UnicodeDecodeError as error:
            raise _not_ours(content, str(error)) from None
        sound = outputs == OUTPUTS and self.inputs in (list(INPUTS[:1]), list(INPUTS))
        if self.facts.get("format") != FORMAT or not sound:
            raise _not_ours(content, f"a model that gives {', '.join(outputs)}"[:200])

    def __call__(self, image: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Probabilities, mask probabilities, voices and features of images; see ``models.export.Judging``."""
        given = {INPUTS[0]: image, INPUTS[1]: mask}
        feed = {name: _array(given[name]) for name in self.inputs}
        return [torch.from_numpy(array) for array in self._session.run(list(OUTPUTS), feed)]


def _array(planes: Tensor | None) -> np.ndarray:
    if planes is None:
        raise ValueError("this model needs masks beside the images")
    return np.ascontiguousarray(planes.cpu().numpy(), np.float32)


def _session(content: bytes | Path, threads: int) -> Any:
    import onnxruntime  # type: ignore[import-untyped]
    from onnxruntime.capi import onnxruntime_pybind11_state as errors  # type: ignore[import-untyped]

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3  # errors only
    model = content if isinstance(content, bytes) else str(content)
    refused = (errors.Fail, errors.InvalidProtobuf, errors.InvalidGraph, errors.InvalidArgument, errors.NoSuchFile)
    try:
        # Without fallback: it would print what is wrong and try the same once more.
        providers: dict[str, Any] = {"providers": ["CPUExecutionProvider"], "enable_fallback": 0}
        return onnxruntime.InferenceSession(model, settings, **providers)
    except (*refused, errors.NotImplemented, errors.RuntimeException, UnicodeDecodeError) as error:
        raise _not_ours(content, str(error).strip()[:200]) from None


def _not_ours(content: bytes | Path, found: str) -> UserError:
    name = content if isinstance(content, Path) else "the model"
    return UserError(
        f"{name} is not an exported network of this toolkit",
        expected="what 3TDCFNet_export.py --to onnx writes",
        found=found,
        remedy="export the network again (--overwrite)",
    )


def exported_path(weights: Path) -> Path:
    """Where the ONNX file of a weights' file lies: ``latest_net_3TDCFNet.onnx`` beside the ``.safetensors``."""
    return weights.with_suffix(SUFFIX)


@dataclass
class OnnxOutput:
    """What ``models.inference`` needs of a network's output.

    Attributes:
        voices: (B, 4).
        mask_probability: (B, 1, H, W).
    """

    voices: Tensor
    mask_probability: Tensor


class OnnxNetwork:
    """An exported network in the place of the network: ``models.inference.predict`` runs it like one.

    Args:
        saved: the checkpoint that it was exported from.
        path: the ONNX file, by default the one beside the checkpoint.
        threads: that one call works with, by default as many as PyTorch would.

    Attributes:
        keeps_features: whether :meth:`take_features` will be asked; what is kept goes only when it is.

    Raises:
        UserError: the file is missing, damaged, or was exported from other weights than the checkpoint holds now.
    """

    def __init__(self, saved: SavedNetwork, path: Path | None = None, *, threads: int | None = None) -> None:
        network = saved.network
        self.path = path or exported_path(saved.path)
        self.model = OnnxModel(self.path, threads=torch.get_num_threads() if threads is None else threads)
        _check_same_weights(saved, self)
        self.architecture, self.verdicts, self.weights = network.architecture, network.verdicts, network.weights
        self.open_tiers, self.draws_masks = network.open_tiers, network.draws_masks
        self.keeps_features, self._seen = False, list[Tensor]()

    def eval(self) -> OnnxNetwork:
        """It is in evaluation always."""
        return self

    def __call__(self, rgb: Tensor, given_mask: Tensor, see_given: Tensor) -> OnnxOutput:
        """Judge a batch, as ``ThreeTierDCFNet.forward``.

        Raises:
            UserError: the file was made for the other kind of masks.
        """
        takes = len(self.model.inputs) > 1
        if self.architecture.binary_stream and bool((see_given != takes).any()):
            kind = "given masks (--binary_from gt)" if not takes else "predicted masks"
            raise UserError(
                f"{self.path} cannot be shown {kind}",
                expected="the masks that its binary stream learned with",
                remedy="use --backend torch",
            )
        _, probability, voices, features = self.model(rgb, given_mask)
        if self.keeps_features:
            self._seen.append(features)
        return OnnxOutput(voices, probability)

    def take_features(self) -> np.ndarray:
        """(B, F) pooled features of the batch just judged, the mean over its views and crops."""
        features = torch.stack(self._seen).mean(dim=0).numpy()
        self._seen.clear()
        return np.asarray(features, np.float32)


def _check_same_weights(saved: SavedNetwork, network: OnnxNetwork) -> None:
    facts = network.model.facts
    if facts.get("weights_sha256") != digest_of(saved.path):
        raise UserError(
            f"{network.path} was exported from other weights than those of {saved.path}",
            expected="the network as it is now",
            found=f"epoch {facts.get('epoch', 'unknown')} of {facts.get('name', 'unknown')}",
            remedy="export it again: python 3TDCFNet_export.py --to onnx --overwrite, with the run's --name",
        )


class OnnxJudge:
    """A network run by ONNX Runtime; a ``models.judges.Judge`` made as ``NetworkJudge`` is.

    Args:
        saved: the checkpoint; what it is is taken from it, what it says from the ONNX file beside it.
        name: of its run.
        load_size: side at which it is shown images, pixels.
        device: the CPU.
        views: turned and mirrored views of each image that are averaged.

    Raises:
        UserError: another device; see also ``OnnxNetwork``.
    """

    def __init__(self, saved: SavedNetwork, name: str, load_size: int, device: torch.device, *, views: int = 1) -> None:
        check_device(device)
        self.saved, self.name, self.load_size, self.views = saved, name, load_size, views
        self.network = OnnxNetwork(saved)
        self.network.keeps_features = True
        self.reference = read_reference(saved.path, saved.network)
        self.digest = digest_of(saved.path)

    def __call__(self, batch: SmearBatch) -> Said:
        """Judge a batch of whole images at ``load_size``."""
        network: Any = self.network
        sees = see_none if self.saved.binary_sees == "predicted" else see_all
        (said,) = predict(network, [batch], torch.device("cpu"), sees, views=self.views)
        return Said(said.logits.numpy(), said.mask_probability[:, 0].numpy(), self.network.take_features())


def check_device(device: torch.device) -> None:
    """Raise UserError unless the device is the CPU: ONNX Runtime's package runs there only."""
    if device.type != "cpu":
        raise UserError(
            "--backend onnx runs on the CPU", expected="--gpu_ids -1", found=str(device), remedy="use --gpu_ids -1"
        )


def network_to_run(saved: SavedNetwork, device: torch.device, backend: str) -> Any:
    """The network of a checkpoint as ``models.inference.predict`` runs it, by PyTorch ("torch") or ONNX Runtime.

    Raises:
        UserError: see ``OnnxNetwork`` and ``check_device``.
    """
    if backend == "torch":
        return saved.network.to(device).to(memory_format=torch.channels_last)
    check_device(device)
    return OnnxNetwork(saved)
