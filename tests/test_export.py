"""Exported networks say what the network says, at any size, alone and in its place; bad calls are one clear error."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from data.synthetic import synthesize
from data.unlabelled import batches_of
from models.export import (
    FORMS,
    RUNNERS,
    Check,
    Judging,
    SameConvolution,
    average_pool_to,
    check,
    metadata_of,
    sides_move,
    takes_mask,
    torch_runner,
)
from models.judges import NetworkJudge
from models.network import Architecture, ThreeTierDCFNet
from models.onnx_backend import OnnxJudge, OnnxModel, OnnxNetwork, network_to_run
from models.saved import load_network
from options.export_command import parse_export_command
from tests.test_commands import call, refused
from util.checkpoint import save_checkpoint
from util.errors import UserError

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package, reason="see requirements-dev.txt")

REPOSITORY = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
SIDE = 64
EXAMPLE = REPOSITORY / "examples" / "onnx_verdict.py"


def network(open_tiers=3, seed=0, **parts):
    """A small network in which every part has a say: what training begins at zero is not zero."""
    torch.manual_seed(seed)
    made = ThreeTierDCFNet(Architecture("small", SIDE, 0.0, **parts))
    made.open(open_tiers)
    for name, state in made.state_dict().items():
        if name.endswith("running_mean") or (state.is_floating_point() and not state.any()):
            nn.init.normal_(state, std=0.1)
    return made.eval()


def write_run(folder, made, *, draws_masks=True, name="RUN", epoch=3):
    """A run's folder with these weights and little else."""
    path = folder / name / "latest_net_3TDCFNet.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "architecture": made.architecture.as_dict(),
        "network": made.state_dict(),
        "open_tiers": made.open_tiers,
        "draws_masks": draws_masks,
        "decoder_ready": draws_masks,
        "all_masks": draws_masks,
        "unpaired_binary": "auto",
        "epoch": epoch,
        "tiers_opened": {},
        "options": {"loadSize": {"value": SIDE, "default": 300}},
        "data": {"synthetic": True, "dataroot": "/a/secret/place", "sides": {"train": "8 images"}},
        "starts": {},
    }
    save_checkpoint(path, content)
    return path


def smears(*sizes, count=3):
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, 3, *sizes, generator=generator)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a run, its weights exported by the command."""
    folder = tmp_path_factory.mktemp("export")
    write_run(folder / "checkpoints", network())
    patch = pytest.MonkeyPatch()
    try:
        assert not call("export", "--name RUN --to onnx", patch, folder)
    finally:
        patch.undo()
    return folder


@pytest.fixture
def weights(exported):
    return exported / "checkpoints" / "RUN" / "latest_net_3TDCFNet.safetensors"


@pytest.fixture(scope="module")
def model(exported):
    return OnnxModel(exported / "checkpoints" / "RUN" / "latest_net_3TDCFNet.onnx", threads=1)


# ---- what it says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [((64, 64), 1), ((65, 63), 3), ((96, 72), 2), ((129, 200), 3)])
def test_the_onnx_file_says_what_the_network_says(model, size, count):
    made, images = network(), smears(*size, count=count)
    with torch.no_grad():
        truth = made(images, torch.zeros(count, 1, *size), torch.zeros(count, dtype=torch.bool))
    chances, mask, voices, features = model(images)
    torch.testing.assert_close(chances, truth.logits.sigmoid(), atol=1e-4, rtol=0)
    torch.testing.assert_close(mask, truth.mask_probability, atol=1e-4, rtol=0)
    torch.testing.assert_close(voices, truth.voices, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features, torch.cat([t.pooled for t in truth.tiers], dim=1), atol=1e-4, rtol=1e-4)
    assert float(chances[:, 3].max() - chances[:, 3].min()) > 0 or count == 1  # it sees the images at all


def test_it_says_what_it_is(model):
    facts = model.facts
    assert json.loads(facts["classes"]) == ["Healthy", "Anemic"] and facts["positive_class"] == "Anemic"
    assert json.loads(facts["heads"]) == ["tier1", "tier2", "tier3", "global"]
    assert (facts["name"], facts["input_size"], facts["open_tiers"]) == ("RUN", "64", "3")
    assert facts["training_data"] == "synthetic smears" and facts["normalisation"] == "inside the network"
    assert facts["purpose"] == "Research use only, not for diagnosis."
    assert re.fullmatch(r"\d+\.\d+\.\d+", facts["toolkit_version"])
    assert "secret" not in json.dumps(facts)


@pytest.mark.parametrize("told", [None, 96, {"default": 96}, {"value": "96"}, {"value": SIDE - 1}, {"value": 10**9}])
def test_a_load_size_that_cannot_be_is_the_input_size(weights, told):
    saved = load_network(weights)
    assert metadata_of(saved, "RUN", "0", "onnx")["load_size"] == str(SIDE)
    saved.facts["options"]["loadSize"] = {"value": 96}
    assert metadata_of(saved, "RUN", "0", "onnx")["load_size"] == "96"
    saved.facts["options"]["loadSize"] = told
    assert metadata_of(saved, "RUN", "0", "onnx")["load_size"] == str(SIDE)


def test_a_network_that_learned_with_otsus_masks_takes_them_as_second_input(tmp_path, monkeypatch):
    path = write_run(tmp_path / "checkpoints", network(open_tiers=1), draws_masks=False)
    assert not call("export", "--name RUN --images 1", monkeypatch, tmp_path)
    model, images = OnnxModel(path.with_suffix(".onnx")), smears(80, 80, count=2)
    assert model.inputs == ["image", "mask"]
    made = load_network(path).network.eval()
    for mask in (torch.zeros(2, 1, 80, 80), (images[:, :1] > 0.5).float()):
        with torch.no_grad():
            truth = made(images, mask, torch.ones(2, dtype=torch.bool))
        torch.testing.assert_close(model(images, mask)[0], truth.logits.sigmoid(), atol=1e-4, rtol=0)
    batch = batches_of(synthesize(0, seed=1, size=90).rgb, [SIDE], CPU)[SIDE]
    one, other = (judge(load_network(path), "RUN", SIDE, CPU)(batch) for judge in (NetworkJudge, OnnxJudge))
    assert one.logits == pytest.approx(other.logits, abs=1e-4) and one.masks == pytest.approx(other.masks, abs=1e-4)


@pytest.mark.parametrize("given", [False, True])
def test_the_binary_stream_sees_the_masks_that_it_learned_with(given):
    """Also of a network that draws masks of its own."""
    made, images = network(), smears(64, 64)
    masks = (images[:, :1] > 0.5).float()
    with torch.no_grad():
        truth = [made(images, masks, torch.full((3,), seen)).logits.sigmoid() for seen in (given, not given)]
        found, *_ = Judging(made, given_masks=given)(images, masks if given else None)
    torch.testing.assert_close(found, truth[0], atol=1e-6, rtol=0)
    assert not torch.allclose(truth[0], truth[1], atol=1e-4)


def test_a_network_without_a_binary_stream_needs_no_masks(tmp_path):
    saved = load_network(write_run(tmp_path, network(binary_stream=False), draws_masks=False))
    assert saved.binary_sees == "otsu" and not takes_mask(saved)


def test_the_torch_file_says_what_the_network_says(tmp_path, monkeypatch, capsys):
    """One tier, at a size too small to be traced for others: the whole way for every size takes minutes."""
    path = write_run(tmp_path / "checkpoints", network(open_tiers=1, binary_stream=False))
    loaded = []
    monkeypatch.setitem(RUNNERS, "torch", lambda content: loaded.append(torch_runner(content)) or loaded[0])
    assert not call("export", "--name RUN --to torch --images 2", monkeypatch, tmp_path)
    assert "sides: 64 only" in capsys.readouterr().out
    with zipfile.ZipFile(path.with_suffix(".pt2")) as file:
        (name,) = (name for name in file.namelist() if name.endswith("metadata.json"))
        assert json.loads(file.read(name))["sides"] == "64 only"
    made = load_network(path).network.eval()
    for count in (1, 5):
        images = smears(64, 64, count=count)
        with torch.no_grad():
            truth = made(images, images[:, :1], torch.zeros(count, dtype=torch.bool))
            chances, mask, *_ = loaded[0](images, None)
        torch.testing.assert_close(chances, truth.logits.sigmoid(), atol=1e-4, rtol=0)
        torch.testing.assert_close(mask, truth.mask_probability, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("fine_size", "moves"), [(64, False), (124, False), (128, True), (300, True), (299, False)])
def test_which_torch_files_take_any_size(tmp_path, fine_size, moves):
    made = network()
    made.architecture = Architecture("small", fine_size, 0.0)
    saved = load_network(write_run(tmp_path, made))
    assert sides_move(saved, "torch") == moves and sides_move(saved, "onnx")


# ---- the parts that are computed otherwise --------------------------------------------------------------------------


class Parts(nn.Module):
    """What is replaced for the export, in one small chain."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(*(SameConvolution(conv) for conv in same_convolutions()))

    def forward(self, x):
        return average_pool_to(self.convolutions(x), (5, 7))


def same_convolutions():
    from timm.layers import Conv2dSame

    torch.manual_seed(1)
    return Conv2dSame(3, 4, 3, stride=2), Conv2dSame(4, 4, 5, stride=2, groups=4), Conv2dSame(4, 6, 3, dilation=2)


@pytest.mark.parametrize("size", [(64, 64), (65, 90), (67, 128), (5, 7), (38, 19), (33, 300)])
def test_they_compute_the_same(size):
    x = smears(*size)
    torch.testing.assert_close(average_pool_to(x, (5, 7)), functional.adaptive_avg_pool2d(x, (5, 7)))
    with torch.no_grad():
        for convolution in same_convolutions():
            planes = x[:, :1].expand(-1, convolution.in_channels, -1, -1)
            torch.testing.assert_close(SameConvolution(convolution)(planes), convolution(planes))


def test_torch_export_traces_them_for_sizes_in_steps():
    from torch.export import Dim, export

    parts, reference = Parts().eval(), nn.Sequential(*same_convolutions())
    free = {0: Dim("batch"), 2: 4 * Dim("height", min=32), 3: 4 * Dim("width", min=32)}
    with torch.no_grad():
        programme = export(parts, (smears(164, 180, count=2),), dynamic_shapes=(free,)).module()
        for size in ((128, 128), (256, 300), (148, 320)):
            expected = functional.adaptive_avg_pool2d(reference(smears(*size)), (5, 7))
            torch.testing.assert_close(programme(smears(*size)), expected)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_a_file_is_not_replaced_unasked(exported, weights, monkeypatch):
    before = weights.with_suffix(".onnx").read_bytes()
    assert "is there already" in refused("export", "--name RUN", monkeypatch, exported)
    assert weights.with_suffix(".onnx").read_bytes() == before


def test_a_file_is_replaced_when_asked(tmp_path, monkeypatch):
    out = write_run(tmp_path / "checkpoints", network(open_tiers=1)).with_suffix(".onnx")
    out.write_text("old")
    monkeypatch.setitem(FORMS, "onnx", lambda saved, facts: b"new")
    monkeypatch.setitem(RUNNERS, "onnx", lambda content: None)
    monkeypatch.setattr("models.export.check", lambda *_: Check({"probabilities": 1e-5}, [(64, 64)], [1]))
    assert not call("export", "--name RUN --images 1 --overwrite", monkeypatch, tmp_path)
    assert out.read_text() == "new"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--name NONE", "no weights at"),
        ("--name RUN --which_epoch best", "no weights at"),
        ("--name RUN --out run.bin", "another ending"),
        ("--name RUN --to torch --out run.onnx", "another ending"),
        ("--name RUN --out checkpoints/RUN/options.json/x/run.onnx", "cannot write"),
        ("--name RUN --out other.onnx --dataroot nowhere", "nowhere"),
        ("--name RUN --out other.onnx --image 3", "did you mean --images"),
        ("--name RUN --out other.onnx --images 0", "from 1 to 64"),
        ("--name RUN --out other.onnx --images 1000000000", "from 1 to 64"),
        ("--name ../RUN", "plain folder name"),
    ],
)
def test_bad_calls(exported, monkeypatch, line, words):
    (exported / "checkpoints/RUN/options.json").write_text("{}")
    assert words in refused("export", line, monkeypatch, exported)
    assert not (exported / "other.onnx").exists()


def test_a_call_that_fails_makes_no_folder_and_one_that_succeeds_makes_it(exported, tmp_path, monkeypatch):
    line = "--name RUN --checkpoints_dir checkpoints --out deep/er/run.onnx"
    assert "nowhere" in refused("export", f"{line} --dataroot nowhere", monkeypatch, exported)
    assert not (exported / "deep").exists()
    monkeypatch.setitem(FORMS, "onnx", lambda saved, facts: b"new")
    monkeypatch.setitem(RUNNERS, "onnx", lambda content: None)
    monkeypatch.setattr("models.export.check", lambda *_: Check({"probabilities": 1e-5}, [(64, 64)], [1]))
    assert not call("export", f"{line} --images 1", monkeypatch, exported)
    assert (exported / "deep/er/run.onnx").read_bytes() == b"new"


def test_without_the_packages(exported, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = refused("export", "--name RUN --out new.onnx", monkeypatch, exported)
    assert "pip install onnx onnxruntime" in text
    with pytest.raises(UserError, match="onnxruntime"):
        OnnxModel(b"")


def test_a_file_that_differs_is_not_written(weights, tmp_path, monkeypatch):
    """Here because it is another network's."""
    write_run(tmp_path / "checkpoints", network(seed=1))
    monkeypatch.setitem(FORMS, "onnx", lambda saved, facts: weights.with_suffix(".onnx").read_bytes())
    text = refused("export", "--name RUN --out differs.onnx --images 1", monkeypatch, tmp_path)
    assert "differs from" in text and "probabilities" in text
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_check_sees_what_differs_at_another_size_or_in_another_batch_only(weights, model):
    saved, images = load_network(weights), smears(SIDE, SIDE)

    def wrong(image, mask=None):
        found = model(image)
        found[0] = found[0] + (0.01 if image.shape[-1] > SIDE else 0.0)
        found[2] = found[2] if len(image) > 1 else found[2][:, :3]
        return found

    checked = check(model, saved, images, images[:, :1], "onnx")
    assert 0 < checked.largest < 1e-4 and checked.batches == [1, 2, 3] and (SIDE, SIDE) in checked.sizes
    checked = check(wrong, saved, images, images[:, :1], "onnx")
    assert checked.differences["probabilities"] == pytest.approx(0.01, abs=1e-4)
    assert checked.differences["voices"] == float("inf")


# ---- in the network's place -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("load_size", "views"), [(64, 1), (90, 1), (64, 4)])
def test_it_judges_as_the_network_does(weights, load_size, views):
    """With crops, with views, with the features that show whether an image is unlike the training images."""
    batch = batches_of(synthesize(1, seed=2, size=100).rgb, [load_size], CPU)[load_size]
    own = NetworkJudge(load_network(weights), "RUN", load_size, CPU, views=views)(batch)
    judge = OnnxJudge(load_network(weights), "RUN", load_size, CPU, views=views)
    judge(batches_of(synthesize(2, seed=2, size=100).rgb, [load_size], CPU)[load_size])  # nothing is kept of it
    other = judge(batch)
    assert other.logits == pytest.approx(own.logits, abs=1e-4)
    assert other.masks == pytest.approx(own.masks, abs=1e-4)
    assert other.features == pytest.approx(own.features, abs=1e-4)


def test_what_a_test_asks_of_a_network_it_knows(weights):
    saved = load_network(weights)
    one, other = (network_to_run(saved, CPU, backend) for backend in ("torch", "onnx"))
    assert other.open_tiers == one.open_tiers and other.weights.tolist() == one.weights.tolist()


def test_what_it_cannot_do_is_refused(weights):
    saved = load_network(weights)
    model = OnnxNetwork(saved)
    with pytest.raises(UserError, match="--binary_from gt"):
        model(smears(64, 64), torch.ones(3, 1, 64, 64), torch.ones(3, dtype=torch.bool))
    with pytest.raises(UserError, match="--gpu_ids -1"):
        network_to_run(saved, torch.device("cuda", 0), "onnx")


def test_an_export_of_other_weights_is_refused(weights, tmp_path):
    other = load_network(write_run(tmp_path, network(), epoch=4))
    with pytest.raises(UserError, match="other weights"):
        OnnxNetwork(other, weights.with_suffix(".onnx"))


def test_files_that_are_no_export_are_refused(weights, tmp_path):
    import onnx

    content = weights.with_suffix(".onnx").read_bytes()
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    nothing, cut, text, foreign = (tmp_path / f"{name}.onnx" for name in ("nothing", "cut", "text", "foreign"))
    cut.write_bytes(content[: len(content) // 2])
    text.write_text("no model")
    foreign.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"3TDCFNet_export\.py"):
        OnnxModel(nothing)
    for path in (cut, text, foreign):
        with pytest.raises(UserError, match="is not an exported network"):
            OnnxModel(path)


def test_it_says_where_its_metadata_comes_from(weights):
    saved = load_network(weights)
    assert metadata_of(saved, "RUN", "abc", "onnx")["weights_sha256"] == "abc"
    assert "multiples" not in metadata_of(saved, "RUN", "", "onnx")["sides"]


# ---- the example ----------------------------------------------------------------------------------------------------


def test_the_example_says_what_the_toolkit_says(weights, tmp_path):
    rgb = synthesize(3, seed=4, size=150).rgb[:, :140]
    Image.fromarray(rgb).save(tmp_path / "smear.png")
    line = [sys.executable, str(EXAMPLE), str(weights.with_suffix(".onnx")), "smear.png"]
    said = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60).stdout
    batch = batches_of(rgb, [SIDE], CPU)[SIDE]
    own = NetworkJudge(load_network(weights), "RUN", SIDE, CPU)(batch)
    chance = 1 / (1 + torch.exp(-torch.from_numpy(own.logits[0])))
    printed = [float(number) for number in re.findall(r"(?:chance of Anemic|Tier-I+) (\d\.\d+)", said)]
    assert printed == pytest.approx([float(chance[3]), *chance[:3].tolist()], abs=1e-3)
    assert said.startswith(f"smear.png: {'Anemic' if chance[3] > 0.5 else 'Healthy'}, ")
    assert Image.open(tmp_path / "smear_predicted_mask.png").size == (140, 150)


def test_the_example_replaces_no_file_and_says_in_a_line_what_it_cannot_take(weights, tmp_path):
    Image.new("L", (90, 70), 200).save(tmp_path / "grey.png")
    Image.new("RGBA", (90, 70)).save(tmp_path / "clear.png")
    (tmp_path / "grey_predicted_mask.png").write_bytes(b"mine")
    for name, words in (("grey.png", "File exists"), ("clear.png", "RGBA"), ("gone.png", "No such file")):
        line = [sys.executable, str(EXAMPLE), str(weights.with_suffix(".onnx")), name]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and words in done.stderr and done.stderr.startswith(f"{name}: ")
        assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "grey_predicted_mask.png").read_bytes() == b"mine"


def test_the_example_says_in_a_line_what_is_wrong_with_its_model_or_its_call(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    Image.new("L", (9, 7), 200).save(tmp_path / "grey.png")
    for given, words in (
        (["absent.onnx", "grey.png"], "absent.onnx: "),
        (["bad.onnx", "grey.png"], "bad.onnx: "),
        ([], "python onnx_verdict.py"),
        (["bad.onnx"], "python onnx_verdict.py"),
    ):
        line = [sys.executable, str(EXAMPLE), *given]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1 and not done.stdout


def test_the_example_is_short_and_stands_alone():
    tree = ast.parse(EXAMPLE.read_text(encoding="utf-8"))
    imports = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imports |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imports == {"sys", "pathlib", "numpy", "onnxruntime", "PIL"}
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 30


# ---- the documentation ----------------------------------------------------------------------------------------------


def test_the_commands_in_the_documentation_parse():
    text = (REPOSITORY / "docs" / "export.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\s*python 3TDCFNet_export\.py(.*)$", text, re.M)
    assert len(lines) >= 3
    for line in lines:
        assert parse_export_command(shlex.split(line), prog="p", description="").to in ("onnx", "torch")
