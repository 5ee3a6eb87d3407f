"""Checkpoints: what goes in comes out, and what is damaged, foreign or hostile is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.network import Architecture, ThreeTierDCFNet
from models.saved import load_network
from util import checkpoint as checkpoint_module
from util.checkpoint import load_checkpoint, load_weights, on_host, save_checkpoint
from util.errors import UserError
from util.files import keep_before


def test_nested_data_comes_back(tmp_path):
    content = {
        "a": [1, 2.5, None, True, "x"],
        "weights": {"w": torch.arange(6.0).view(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)},
        "deep": {"state": {"0": {"step": torch.tensor(3.0)}}, "empty": []},
    }
    save_checkpoint(tmp_path / "c.safetensors", content)
    loaded = load_checkpoint(tmp_path / "c.safetensors")
    assert torch.equal(loaded["weights"]["w"], content["weights"]["w"])
    assert loaded["weights"]["half"].dtype == torch.bfloat16
    assert loaded["a"] == content["a"]
    assert loaded["deep"]["state"]["0"]["step"].item() == 3.0
    assert loaded["deep"]["empty"] == []


def test_a_copy_on_the_host_is_what_a_file_would_give_and_stays_as_it_is(tmp_path):
    weights = {"w": torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last), "alone": torch.tensor(2.0)}
    kept = on_host({"epoch": 3, "network": weights})
    save_checkpoint(tmp_path / "c.safetensors", {"epoch": 3, "network": weights})
    for tensor in weights.values():
        tensor.zero_()
    loaded = load_checkpoint(tmp_path / "c.safetensors")
    assert kept["epoch"] == loaded["epoch"] == 3
    for name in weights:
        assert torch.equal(kept["network"][name], loaded["network"][name]) and kept["network"][name].all()


def test_tensors_that_share_memory_can_be_stored(tmp_path):
    base = torch.arange(4.0)
    save_checkpoint(tmp_path / "c.safetensors", {"a": base, "b": base[1:]})
    assert torch.equal(load_checkpoint(tmp_path / "c.safetensors")["b"], base[1:])


def test_what_is_neither_plain_nor_tensor_is_refused(tmp_path):
    with pytest.raises(TypeError, match="/x: a set cannot be stored"):
        save_checkpoint(tmp_path / "c.safetensors", {"x": {1}})
    assert list(tmp_path.iterdir()) == []


class Bomb:
    def __reduce__(self):
        return (Path("/tmp/should-never-exist-3tdcfnet").touch, ())


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "pickle", "foreign"])
def test_damaged_foreign_and_hostile_files_are_refused(tmp_path, kind):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.ones(1000)})
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        save_file({"a": torch.ones(3)}, path)
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value) and "remedy" in str(error.value)
    assert not Path("/tmp/should-never-exist-3tdcfnet").exists()


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "FORMAT_VERSION", 99)
    save_checkpoint(tmp_path / "c.safetensors", {})
    monkeypatch.undo()
    with pytest.raises(UserError, match="checkpoint format '99'"):
        load_checkpoint(tmp_path / "c.safetensors")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(path, {"a": 2})
    monkeypatch.undo()
    assert load_checkpoint(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"], "no temporary file is left"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_kept_under_a_second_name_stays_under_the_first(tmp_path, monkeypatch, links):
    def none(*_):
        raise OSError(95, "no hard links here")

    if not links:
        monkeypatch.setattr("os.link", none)
    keep_before(tmp_path / "absent", tmp_path / "second")
    assert not list(tmp_path.iterdir())
    (tmp_path / "first").write_text("new")
    (tmp_path / "second").write_text("old")
    keep_before(tmp_path / "first", tmp_path / "second")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"first": "new", "second": "new"}


def test_weights_of_another_architecture_are_refused():
    small = ThreeTierDCFNet(Architecture("small", 96))
    weights = dict(small.state_dict())
    load_weights(small, weights, Path("x"))
    weights.pop("fusion_head.bias")
    weights["stranger"] = torch.ones(1)
    weights["fusion_head.weight"] = torch.ones(1, 3)
    with pytest.raises(UserError, match="another architecture") as error:
        load_weights(small, weights, Path("x"))
    assert all(word in str(error.value) for word in ("missing fusion_head.bias", "unknown stranger", "3 differences"))


def test_weights_of_another_kind_of_number_are_refused():
    module = torch.nn.Linear(2, 1)
    weights = {"weight": torch.ones(1, 2, dtype=torch.complex64), "bias": torch.ones(1, dtype=torch.int64)}
    with pytest.raises(UserError, match="2 differences, first: weight is torch.complex64, expected torch.float32"):
        load_weights(module, weights, Path("x"))
    load_weights(module, {"weight": torch.ones(1, 2).double(), "bias": torch.ones(1).half()}, Path("x"))


def saved(tmp_path, **changes):
    network = ThreeTierDCFNet(Architecture("small", 96))
    content = {
        "architecture": network.architecture.as_dict(),
        "open_tiers": 2,
        "draws_masks": True,
        "decoder_ready": False,
        "all_masks": False,
        "unpaired_binary": "auto",
        "epoch": 3,
        "tiers_opened": {},
        "options": {},
        "data": {},
        "starts": {},
        "network": dict(network.state_dict()),
        **changes,
    }
    save_checkpoint(tmp_path / "w.safetensors", content)
    return tmp_path / "w.safetensors", network


def test_a_saved_network_is_built_again_from_its_own_description(tmp_path):
    path, network = saved(tmp_path)
    loaded = load_network(path)
    assert loaded.network.architecture == network.architecture and loaded.network.open_tiers == 2
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[key], value)
    assert loaded.masks_from == "decoder"
    loaded.check_sizes(96, 96)
    with pytest.raises(UserError, match="--fineSize 96"):
        loaded.check_sizes(300, 300)


def test_a_network_that_never_drew_masks_says_so(tmp_path):
    path, _ = saved(tmp_path, draws_masks=False)
    assert load_network(path).masks_from == "otsu"
    assert load_network(path).binary_sees == "otsu"


@pytest.mark.parametrize(
    ("rule", "ready", "all_masks", "sees"),
    [
        ("auto", False, False, "otsu"),
        ("auto", True, False, "predicted"),
        ("auto", False, True, "predicted"),  # no training image was without a mask: the stream never saw Otsu's
        ("otsu", True, False, "otsu"),
        ("predicted", False, False, "predicted"),
    ],
)
def test_what_the_binary_stream_sees_of_a_new_image(tmp_path, rule, ready, all_masks, sees):
    path, _ = saved(tmp_path, unpaired_binary=rule, decoder_ready=ready, all_masks=all_masks)
    assert load_network(path).binary_sees == sees


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("options", None),
        ("epoch", "x"),
        ("network", 5),
        ("open_tiers", None),
        ("tiers_opened", "abc"),
        ("unpaired_binary", "never"),
    ],
)
def test_content_of_the_wrong_kind_is_named(tmp_path, key, value):
    path, _ = saved(tmp_path, **{key: value})
    with pytest.raises(UserError, match=f"holds no network to test.*\n.*\n.*{key}"):
        load_network(path)


@pytest.mark.parametrize(
    "architecture",
    [
        {"preset": "small"},
        {"preset": "huge", "fine_size": 96, "dropout": 0.0},
        {"preset": "small", "fine_size": "x", "dropout": 0.0},
        Architecture("small", 96).as_dict() | {"fine_size": True},
        Architecture("small", 96).as_dict() | {"fine_size": 32},
        Architecture("small", 96).as_dict() | {"fine_size": 10**9},
        Architecture("small", 96).as_dict() | {"dropout": 1.0},
        Architecture("small", 96).as_dict() | {"dropout": float("nan")},
    ],
)
def test_an_unknown_architecture_is_refused(tmp_path, architecture):
    path, _ = saved(tmp_path, architecture=architecture)
    with pytest.raises(UserError, match="of another architecture"):
        load_network(path)


def test_weights_that_do_not_fit_their_description_are_refused(tmp_path):
    path, _ = saved(tmp_path, architecture=Architecture("full", 96).as_dict())
    with pytest.raises(UserError, match="holds the weights of another architecture"):
        load_network(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    path, network = saved(tmp_path)
    weights = dict(network.state_dict())
    weights["fusion_head.bias"] = torch.full_like(weights["fusion_head.bias"], value)
    path, _ = saved(tmp_path, network=weights)
    with pytest.raises(UserError, match="weights have diverged\n.*\n.*1 tensors, first fusion_head.bias"):
        load_network(path)


@pytest.mark.parametrize("content", [{"epoch": 1}, [1, 2], 5])
def test_a_training_state_is_no_network(tmp_path, content):
    save_checkpoint(tmp_path / "s.safetensors", content)
    with pytest.raises(UserError, match="holds no network to test"):
        load_network(tmp_path / "s.safetensors")


def test_a_reference_that_is_no_name_is_damage(tmp_path):
    save_checkpoint(tmp_path / "s.safetensors", {"a": {"__tensor__": ["b"]}})
    with pytest.raises(UserError, match="damaged or something else"):
        load_checkpoint(tmp_path / "s.safetensors")
