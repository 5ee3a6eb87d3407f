"""A trained network as one file that other programmes run: ONNX, or a PyTorch programme of torch.export.

What is exported is the whole network for judging: an RGB image in, verdicts by tier and Global and the mask out. Its
normalisation is inside. A file is written only after it has said the same as the network itself.
"""

from __future__ import annotations

import copy
import io
import json
import tomllib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from models.backbones import EntryOfPreviousTier, PyramidMerge
from models.judges import trained_size
from models.network import HEAD_KEYS, TIERS, ThreeTierDCFNet, Tier, TierOutput
from models.onnx_backend import FORMAT, INPUTS, OUTPUTS, OnnxModel, require_packages
from models.saved import SavedNetwork
from util import sides
from util.errors import UserError
from util.files import atomic_write, make_folder
from util.results import CLASS_WORDS

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4
OPSET = 18
# A torch.export programme is traced for sides in steps of 4 from here on: below, features of a single pixel are another
# programme, and other steps make the relations of the sizes too many to be traced in minutes.
STEP, SMALLEST_TRACED, LARGEST_TRACED = 4, 128, 4096
BATCHES = (1, 2, 3)
NOTICE = "Research use only, not for diagnosis."

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]
Runner = Callable[[Tensor, Tensor | None], Sequence[Tensor]]


# --- a network that can be traced at any size -----------------------------------------------------------------------


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _shares(length: int, parts: int, like: Tensor) -> Tensor:
    """(parts, length): the weight of each place in each part's average, as adaptive pooling parts a line."""
    part, place = torch.arange(parts, device=like.device), torch.arange(length, device=like.device)
    first, after = part * length // parts, ((part + 1) * length + parts - 1) // parts
    inside = (place >= first[:, None]) & (place < after[:, None])
    return inside.to(like.dtype) / (after - first)[:, None]


def average_pool_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``adaptive_avg_pool2d`` of (B, C, H, W) as two matrix products, for ONNX has it for fixed sizes only."""
    rows, columns = _shares(x.shape[-2], size[0], x), _shares(x.shape[-1], size[1], x)
    return torch.matmul(torch.matmul(rows, x), columns.transpose(0, 1))


class _Merge(PyramidMerge):
    """Averages without asking whether the size is already right."""

    def _averaged(self, pyramid: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        parts = [lateral(average_pool_to(x, size)) for lateral, x in zip(self.laterals, pyramid, strict=True)]
        return torch.stack(parts).sum(dim=0)


class _Tier(Tier):
    """Resizes without asking whether the size is already right; resizing to the same size changes nothing."""

    def _outlines(self, pyramid: list[Tensor], merged: Tensor) -> Tensor:
        outlines = self.enter_binary(self.merge_binary(pyramid, self.size))
        return _resize(outlines, (merged.shape[-2], merged.shape[-1]))


class _Entry(EntryOfPreviousTier):
    """Likewise."""

    def forward(self, features: Tensor, previous: Tensor | None, size: tuple[int, int] | None = None) -> Tensor:
        if previous is None:
            return features
        projected = self.project(previous)
        if size is not None:
            projected = _resize(projected, size)
        return features + _resize(projected, (features.shape[-2], features.shape[-1]))


class _Network(ThreeTierDCFNet):
    """Hears the fused features of the open tiers alone: those of closed ones are zeros, made for a counted batch."""

    def _voices(self, outputs: list[TierOutput]) -> Tensor:
        silent = torch.zeros_like(outputs[0].voice)
        voices = [output.voice for output in outputs] + [silent] * (TIERS - len(outputs))
        fused = silent
        if self.architecture.fusion:
            pooled = torch.cat([output.pooled for output in outputs], dim=1)
            head = self.fusion_head
            fused = functional.linear(pooled, head.weight[:, : pooled.shape[1]], head.bias).squeeze(1)
        return torch.stack([*voices, fused], dim=1)


class SameConvolution(nn.Module):
    """timm's convolution with TensorFlow's "same" padding, which depends on the input's size, in whole numbers.

    Args:
        convolution: whose weights are used; no smaller than its stride.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def _padding(self, length: int, axis: int) -> tuple[int, int]:
        """Before and after: so much that as many windows fit as there are strides."""
        conv = self.convolution
        stride, reach = conv.stride[axis], conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
        total = stride * ((length - 1) // stride) + reach - length
        return total // 2, total - total // 2

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) into (B, D, H / stride, W / stride), rounded up."""
        conv = self.convolution
        padded = functional.pad(x, (*self._padding(x.shape[-1], 1), *self._padding(x.shape[-2], 0)))
        return functional.conv2d(padded, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


_TRACED_AS: dict[type[nn.Module], type[nn.Module]] = {
    ThreeTierDCFNet: _Network,
    Tier: _Tier,
    PyramidMerge: _Merge,
    EntryOfPreviousTier: _Entry,
}


def traceable(network: ThreeTierDCFNet) -> ThreeTierDCFNet:
    """A copy of a network for judging alone whose operations are the same at every input size."""
    traced = copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    for module in list(traced.modules()):
        if type(module) in _TRACED_AS:
            module.__class__ = _TRACED_AS[type(module)]  # the same weights and parts, another way to compute
        for name, child in list(module.named_children()):
            if isinstance(child, Conv2dSame):
                setattr(module, name, SameConvolution(child))
    return traced


class Judging(nn.Module):
    """A network as it is exported.

    Args:
        network: in evaluation.
        given_masks: whether the binary stream is given its masks, as a second input, and does not see the network's.
    """

    def __init__(self, network: ThreeTierDCFNet, *, given_masks: bool) -> None:
        super().__init__()
        self.network, self.given_masks = network, given_masks

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Outputs:
        """Judge images (B, 3, H, W) in [0, 1].

        Args:
            image: the smears.
            mask: (B, 1, H, W) of 0 and 1, where masks are given.

        Returns:
            (B, 4) probabilities of Anemic by Tier-I, II, III and Global; (B, 1, H, W) mask probabilities; (B, 4) voices
            and (B, F) pooled features of the open tiers, as ``models.inference`` and ``models.novelty`` use them.
        """
        make = torch.ones if self.given_masks else torch.zeros  # the tracer knows no torch.full of truth values
        see = make(image.shape[0], dtype=torch.bool, device=image.device)
        output = self.network(image, image[:, :1] if mask is None else mask, see)
        features = torch.cat([tier.pooled.float() for tier in output.tiers], dim=1)
        return output.logits.sigmoid(), output.mask_probability, output.voices, features


def takes_mask(saved: SavedNetwork) -> bool:
    """Whether the exported network needs masks beside images: its binary stream saw Otsu's when it learned."""
    return saved.binary_sees == "otsu" and saved.network.architecture.binary_stream


# --- the two forms --------------------------------------------------------------------------------------------------


def sides_move(saved: SavedNetwork, form: str) -> bool:
    """Whether a file of that form takes images of any size, and not those of the network's own input size alone."""
    side = saved.network.architecture.fine_size
    return form == "onnx" or (side >= SMALLEST_TRACED and side % STEP == 0)


def _example(saved: SavedNetwork, side: int) -> tuple[Tensor, ...]:
    """Inputs to trace with; not square, so that height and width are told apart."""
    width = side + 4 * STEP if side != saved.network.architecture.fine_size else side
    image = torch.rand(2, 3, side, width, generator=torch.Generator().manual_seed(0))
    return (image, (image[:, :1] > 0.5).float()) if takes_mask(saved) else (image,)


def _judging(saved: SavedNetwork) -> Judging:
    return Judging(traceable(saved.network), given_masks=takes_mask(saved)).eval()


def as_onnx(saved: SavedNetwork, facts: dict[str, str]) -> bytes:
    """The network as an ONNX model whose batch, height and width are free, with ``facts`` as its metadata.

    PyTorch's tracing exporter is used: the newer one, on torch.export, takes minutes for the free sizes and allows
    fewer of them.
    """
    require_packages()
    import onnx
    from torch.jit._trace import TracerWarning  # torch.jit has it, but does not say that it gives it

    names = INPUTS[:2] if takes_mask(saved) else INPUTS[:1]
    planes = {0: "batch", 2: "height", 3: "width"}
    free = dict.fromkeys((*names, OUTPUTS[1]), planes) | {name: {0: "batch"} for name in (OUTPUTS[0], *OUTPUTS[2:])}
    written = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter as such
        warnings.simplefilter("ignore", TracerWarning)  # what it might get wrong is checked
        torch.onnx.export(
            _judging(saved),
            _example(saved, saved.network.architecture.fine_size + 4 * STEP),
            written,  # type: ignore[arg-type]  # a stream is taken by this exporter
            dynamo=False,
            opset_version=OPSET,
            input_names=list(names),
            output_names=list(OUTPUTS),
            dynamic_axes=free,
        )
    model = onnx.load_from_string(written.getvalue())
    model.producer_name, model.producer_version = "3-TierDCFNet", facts["toolkit_version"]
    model.doc_string = f"{facts['name']}: {facts['purpose']}"
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def as_torch(saved: SavedNetwork, facts: dict[str, str]) -> bytes:
    """The network as a programme of torch.export whose batch is free and, where ``sides_move``, height and width.

    Its ``metadata.json`` holds ``facts``.
    """
    from torch.export import Dim, export, save

    free: dict[int, Any] = {0: Dim("batch", min=1, max=4096)}
    side = saved.network.architecture.fine_size
    if sides_move(saved, "torch"):
        side += 11 * STEP  # another than the published sizes are made for, so that none of them is taken for granted
        for axis, name in ((2, "height"), (3, "width")):
            free[axis] = STEP * Dim(f"{name}_steps", min=SMALLEST_TRACED // STEP, max=LARGEST_TRACED // STEP)
    inputs = _example(saved, side)
    with torch.no_grad():
        programme = export(_judging(saved), inputs, dynamic_shapes=tuple(free for _ in inputs))
    written = io.BytesIO()
    save(programme, written, extra_files={"metadata.json": json.dumps(facts)})
    return written.getvalue()


FORMS: dict[str, Callable[[SavedNetwork, dict[str, str]], bytes]] = {"onnx": as_onnx, "torch": as_torch}


# --- what is written beside the weights -----------------------------------------------------------------------------


def toolkit_version() -> str:
    """The toolkit's version, as pyproject.toml says."""
    with (Path(__file__).resolve().parent.parent / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def metadata_of(saved: SavedNetwork, name: str, weights_digest: str, form: str) -> dict[str, str]:
    """What a file says of itself: text by name, lists as JSON. No path of this machine is in it.

    Args:
        saved: the network.
        name: of its run.
        weights_digest: SHA-256 of the weights' file.
        form: "onnx" or "torch".
    """
    facts, architecture = saved.facts, saved.network.architecture
    side = architecture.fine_size
    taken = f"{sides.INPUT[0]} or more" if form == "onnx" else f"multiples of {STEP} from {SMALLEST_TRACED}"
    synthetic = bool(facts["data"].get("synthetic"))
    return {
        "format": FORMAT,
        "format_version": "1",
        "name": name,
        "purpose": NOTICE,
        "toolkit": "3-TierDCFNet",
        "toolkit_version": toolkit_version(),
        "classes": json.dumps(CLASS_WORDS),
        "positive_class": CLASS_WORDS[1],
        "heads": json.dumps(HEAD_KEYS),
        "open_tiers": str(saved.network.open_tiers),
        "input": "image: RGB, float32 (batch, 3, height, width) from 0 to 1"
        + ("; mask: float32 (batch, 1, height, width), 1 on cells (Otsu's threshold)" if takes_mask(saved) else ""),
        "normalisation": "inside the network",
        "input_size": str(side),
        "load_size": str(trained_size(saved)),
        "sides": taken if sides_move(saved, form) else f"{side} only",
        "draws_masks": json.dumps(saved.network.draws_masks),
        "training_data": "synthetic smears" if synthetic else "smears that are not synthetic",
        "training_images": json.dumps(facts["data"].get("sides", {})),
        "epoch": str(facts["epoch"]),
        "architecture": json.dumps(facts["architecture"]),
        "weights_sha256": weights_digest,
        "exported_with": f"torch {torch.__version__}",
    }


# --- the check ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """How a file compares with the network that it was made of.

    Attributes:
        differences: largest absolute difference by output, over all images and sizes; voices and features are taken
            relative to their largest value where that is above 1.
        sizes: heights and widths that were tried.
        batches: batch sizes that were tried.
    """

    differences: dict[str, float]
    sizes: list[tuple[int, int]]
    batches: list[int]

    @property
    def largest(self) -> float:
        """The largest of all differences."""
        return max(self.differences.values())

    def __str__(self) -> str:
        sizes = ", ".join(f"{height}x{width}" for height, width in self.sizes)
        shown = ", ".join(f"{name} {value:.1e}" for name, value in self.differences.items())
        batches = ", ".join(map(str, self.batches))
        return f"checked against PyTorch at {sizes}, batches of {batches}; largest difference: {shown}"


def torch_runner(content: bytes) -> Runner:
    """What runs a programme of torch.export."""
    module = torch.export.load(io.BytesIO(content)).module()

    def run(image: Tensor, mask: Tensor | None) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = module(image) if mask is None else module(image, mask)
        return outputs

    return run


RUNNERS: dict[str, Callable[[bytes], Runner]] = {"onnx": OnnxModel, "torch": torch_runner}


def sizes_to_check(saved: SavedNetwork, form: str) -> list[tuple[int, int]]:
    """The network's own size and, where sides are free, smaller, larger and oblong ones; 256 and 320 beside 300."""
    side = saved.network.architecture.fine_size
    if not sides_move(saved, form):
        return [(side, side)]
    least, step = (sides.INPUT[0], 1) if form == "onnx" else (SMALLEST_TRACED, STEP)
    smaller, larger = max(least, (side - 44) // step * step), (side + 20) // step * step
    return list(dict.fromkeys([(side, side), (smaller, smaller), (larger, larger), (larger + step, smaller)]))


@torch.no_grad()
def check(run: Runner, saved: SavedNetwork, images: Tensor, masks: Tensor, form: str) -> Check:
    """Compare what a file says with what the network says, image by image.

    Args:
        run: the file.
        saved: the network, on the CPU.
        images: (N, 3, S, S) in [0, 1].
        masks: (N, 1, S, S) of 0 and 1; used where the file takes masks.
        form: "onnx" or "torch".
    """
    truth = Judging(saved.network.eval(), given_masks=takes_mask(saved)).eval()
    found = dict.fromkeys(OUTPUTS, 0.0)
    sizes, batches = sizes_to_check(saved, form), sorted({min(count, len(images)) for count in (*BATCHES, len(images))})
    for size in sizes:
        image, mask = _resize(images, size), (_resize(masks, size) > 0.5).float() if takes_mask(saved) else None
        for count in batches if size == sizes[0] else batches[-1:]:
            inputs = image[:count], None if mask is None else mask[:count]
            for name, own, other in zip(OUTPUTS, truth(*inputs), run(*inputs), strict=True):
                found[name] = max(found[name], _difference(own, other, relative=name in OUTPUTS[2:]))
    return Check(found, sizes, batches)


def _difference(own: Tensor, other: Tensor, *, relative: bool) -> float:
    """Largest difference; infinite where shapes differ or something is not a number."""
    if own.shape != other.shape or not torch.isfinite(other).all():
        return float("inf")
    scale = max(1.0, float(own.abs().max())) if relative else 1.0
    return float((own - other).abs().max()) / scale


# --- the whole of it ------------------------------------------------------------------------------------------------


def check_destination(out: Path, form: str, *, overwrite: bool) -> None:
    """Refuse, before anything takes time, a file that cannot or shall not be written.

    Raises:
        UserError: another ending than the form's; a file is there; its folder cannot be made or written. No folder is
            made here.
    """
    suffix = SUFFIXES[form]
    if out.suffix.lower() != suffix:
        raise UserError(
            f"--out {out} has another ending than --to {form} writes", expected=suffix, found=out.suffix or "none"
        )
    if out.is_dir():
        raise UserError(f"--out {out} is a folder", expected=f"a file name that ends in {suffix}")
    if out.exists() and not overwrite:
        raise UserError(f"{out} is there already", remedy="give another --out, or --overwrite to replace it")
    there = next(folder for folder in out.absolute().parents if folder.exists())
    make_folder(there)  # which only tries whether it can be written


def export_network(
    saved: SavedNetwork, out: Path, form: str, facts: dict[str, str], images: Tensor, masks: Tensor
) -> Check:
    """Export a network, check the file against it and write it; nothing is written that differs.

    Args:
        saved: the network, on the CPU.
        out: the file.
        form: "onnx" or "torch".
        facts: see ``metadata_of``.
        images: (N, 3, S, S) in [0, 1] to check with.
        masks: (N, 1, S, S), theirs by Otsu's threshold.

    Raises:
        UserError: a package is missing, the file says something else than the network, or cannot be written.
    """
    content = FORMS[form](saved, facts)
    checked = check(RUNNERS[form](content), saved, images, masks, form)
    if checked.largest > TOLERANCE:
        raise UserError(
            f"the exported network differs from {saved.path}; nothing was written",
            expected=f"differences of {TOLERANCE} at most",
            found=", ".join(f"{name} {value:.1e}" for name, value in checked.differences.items()),
            remedy="use the versions of torch and onnxruntime that the toolkit is tested with, and report this",
        )
    atomic_write(out, content, make_parents=True)
    return checked
