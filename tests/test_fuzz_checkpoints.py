"""Files of a run that were damaged, changed or made up: whatever is in them, only UserError may come out."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import pickle
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.network import Architecture
from models.novelty import NoveltyReference, digest_of, fit_reference, read_reference, reference_path, write_reference
from models.onnx_backend import FORMAT, INPUTS, OUTPUTS, OnnxModel
from models.progress import UNFINISHED, Progress, unfinished_images
from models.saved import load_network
from options.parser import load_options
from util.checkpoint import load_checkpoint, save_checkpoint
from util.errors import UserError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))  # more of them, drawn anew, for a long search
PROFILE = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


def fuzzed(examples):
    """A bounded search, the same in every run, or a long one."""
    return settings(max_examples=EXAMPLES or examples, derandomize=not EXAMPLES, **PROFILE)


def may_refuse(job):
    """Run a job that may end in a UserError, which says where and what; anything else is a fault."""
    try:
        return job()
    except UserError as error:
        assert str(error).strip()
        return None


edits = st.lists(
    st.tuples(
        st.sampled_from(("change", "cut", "insert", "drop", "repeat")),
        st.integers(0, 10**9),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=4,
)
leaves = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12)
    | st.sampled_from(["\ud800", "é" * 300, "../..", "nan", "1e999"])
)  # fmt: skip
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def edited(content, changes):
    """A file with some of its bytes changed, cut off, put in, left out or repeated."""
    for how, at, extra in changes:
        place = at % (len(content) + 1)
        after = content[place:]
        if how == "change":
            content = content[:place] + extra + after[len(extra) :]
        elif how == "insert":
            content = content[:place] + extra + after
        elif how == "drop":
            content = content[:place] + after[1 + at % 40 :]
        elif how == "repeat":
            content = content[:place] + content[max(0, place - 50) :]
        else:
            content = content[:place]
    return content


def places(value, path=()):
    """Every place in nested data."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def with_other(value, path, other):
    """Nested data with something else at one place."""
    if not path:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = with_other(copy[path[0]], path[1:], other)
    return copy


def at_one_place(content):
    """Nested data with something else at a place that is drawn."""
    return st.builds(
        lambda path, other: with_other(content, path, other), st.sampled_from(list(places(content))), anything
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


# ---- checkpoints ----------------------------------------------------------------------------------------------------

CONTENT = {
    "architecture": Architecture("small", 64).as_dict(), "open_tiers": 2, "draws_masks": True, "decoder_ready": True,
    "all_masks": True, "unpaired_binary": "auto", "epoch": 3, "tiers_opened": {}, "options": {}, "data": {},
    "starts": {},
    "network": {"a": torch.arange(6.0).view(2, 3), "b": {"c": torch.ones(2, dtype=torch.int64)}},
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(folder):
    save_checkpoint(folder / "whole.safetensors", CONTENT)
    return (folder / "whole.safetensors").read_bytes()


@fuzzed(25)
@given(changes=edits)
def test_bytes_of_a_checkpoint(folder, checkpoint, changes):
    path = folder / "c.safetensors"
    path.write_bytes(edited(checkpoint, changes))
    loaded = may_refuse(lambda: load_checkpoint(path))
    if loaded is not None:
        assert set(loaded) == set(CONTENT), "what is read in spite of a change is what was written"
    may_refuse(lambda: load_network(path))


def parted(content):
    """A safetensors file's header and its tensors' bytes."""
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def joined(header, rest):
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + rest


@fuzzed(40)
@given(data=st.data())
def test_header_of_a_checkpoint(folder, checkpoint, data):
    header, rest = parted(checkpoint)
    path = folder / "h.safetensors"
    path.write_bytes(joined(data.draw(at_one_place(header)), rest))
    may_refuse(lambda: load_checkpoint(path))


@fuzzed(40)
@given(data=st.data())
def test_content_of_a_checkpoint_whose_checksum_is_right(folder, data):
    path = folder / "p.safetensors"
    plain = {key: value for key, value in CONTENT.items() if key != "network"} | {"network": {}}
    try:
        save_checkpoint(path, data.draw(at_one_place(plain).filter(lambda value: isinstance(value, dict))))
    except (UnicodeEncodeError, TypeError):
        return  # not to be written at all
    may_refuse(lambda: load_checkpoint(path))
    may_refuse(lambda: load_network(path))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 6000, "NaN", '"\\ud800"', ""])
def test_content_that_a_reader_of_json_chokes_on(folder, checkpoint, text):
    header, rest = parted(checkpoint)
    header["__metadata__"] |= {"content": text}
    del header["__metadata__"]["sha256"]
    path = folder / "j.safetensors"
    path.write_bytes(joined(header, rest))
    may_refuse(lambda: load_checkpoint(path))
    may_refuse(lambda: load_network(path))


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@fuzzed(30)
@given(protocol=st.integers(0, pickle.HIGHEST_PROTOCOL), zipped=st.booleans(), changes=st.just([]) | edits)
def test_pickles_with_code_are_refused_and_not_run(folder, protocol, zipped, changes):
    made, buffer = folder / "made by a pickle", io.BytesIO()
    if zipped:
        torch.save(Payload(made), buffer)
    content = edited(buffer.getvalue() or pickle.dumps(Payload(made), protocol), changes)
    for name, job in (("x.safetensors", load_checkpoint), ("x.pth", load_checkpoint), ("y.safetensors", load_network)):
        (folder / name).write_bytes(content)
        with pytest.raises(UserError):
            job(folder / name)
    (folder / "z_novelty.npz").write_bytes(content)
    (folder / "z_net_3TDCFNet.safetensors").write_bytes(b"")
    with pytest.raises(UserError):
        read_reference(folder / "z_net_3TDCFNet.safetensors")
    assert not made.exists()


# ---- novelty --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(folder):
    """A weights' file with its reference, and that reference's bytes and arrays."""
    weights = folder / "n_net_3TDCFNet.safetensors"
    weights.write_bytes(b"weights")
    draw = np.random.default_rng(0)
    groups = [f"g{index % 15}" for index in range(40)]
    fitted = fit_reference(draw.normal(size=(40, 64)), draw.normal(size=(40, 9)), draw.normal(size=40), groups)
    values = {name: getattr(fitted, name) for name in NoveltyReference.__dataclass_fields__}
    reference = NoveltyReference(**{**values, "weights": digest_of(weights)})
    write_reference(reference_path(weights), reference)
    with np.load(reference_path(weights)) as stored:
        return weights, reference_path(weights).read_bytes(), dict(stored)


def asked(weights):
    """Read a reference, and ask it about an image where it can be read."""
    reference = may_refuse(lambda: read_reference(weights, SimpleNamespace(open_tiers=1)))
    if reference is not None:
        said = reference.of(np.full((16, 16, 3), 0.5, np.float32), np.zeros(64, np.float32))
        assert np.isfinite(said.focus) and (said.features is None or said.features >= 0)


@fuzzed(40)
@given(changes=edits)
def test_bytes_of_a_novelty_reference(known, changes):
    weights, content, _ = known
    reference_path(weights).write_bytes(edited(content, changes))
    may_refuse(lambda: read_reference(weights))


arrays = st.sampled_from(
    [np.zeros(0), np.zeros(()), np.ones((2, 3, 4)), np.full(9, np.nan), np.full(64, -1.0), np.ones(64, complex),
     np.array("text"), np.array(b"bytes"), np.ones(64, bool), np.array(["a"] * 64), np.ones((64, 64)),
     np.array(10**18), np.full(64, 1e308), np.zeros(64), np.array("2026", "datetime64[Y]"),
     np.zeros(64, [("a", "f4")]), np.array(1e-320)]
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "other"),
    [("feature_mean", np.full(64, 1e308)), ("feature_scale", np.full(64, 1e-320)), ("limits", np.full(2, 1e-300))],
)
def test_a_novelty_reference_that_would_say_nothing(known, name, other):
    weights, _, stored = known
    np.savez(reference_path(weights), **{**stored, name: other})
    with pytest.raises(UserError, match="not the novelty reference"):
        read_reference(weights)


@fuzzed(40)
@given(data=st.data())
def test_arrays_of_a_novelty_reference(known, data):
    weights, _, stored = known
    name = data.draw(st.sampled_from(sorted(stored)))
    own = stored[name]
    other = data.draw(arrays | st.sampled_from([own.reshape(-1), own[None], own.astype(object).astype(str)]))
    np.savez(reference_path(weights), **{**stored, name: other})
    asked(weights)


# ---- options, progress, ONNX ----------------------------------------------------------------------------------------

OPTIONS = {"command": "train", "values": {"niter": 3, "lr": 0.1, "name": "RUN", "gate_thresholds": [0.1, 0.2, 0.3]}}


@fuzzed(60)
@given(data=st.data())
def test_an_options_file(folder, data):
    path = folder / "options.json"
    content = json.dumps(data.draw(at_one_place(OPTIONS))).encode("utf-8", "surrogatepass")
    path.write_bytes(edited(content, data.draw(st.just([]) | edits)))
    may_refuse(lambda: load_options(path))


RECORD = {"image": "a.png", "stem": "a", "stamp": [1, 2], "chances": {"global": 0.5}, "spread": None, "cells": [[1, 2]]}
WANTED = {name: ("a", [1, 2]) for name in ("a.png", "b.png", "c.png")}


@fuzzed(60)
@given(changes=edits)
def test_what_an_unfinished_prediction_has_noted(folder, changes):
    """What is taken over in spite of a change is what was noted."""
    progress = Progress(folder, {"data": "x", "cells": "no"})
    progress.begin()
    for name in WANTED:
        progress.add(RECORD | {"image": name})
    progress.close()
    path = folder / UNFINISHED
    path.write_bytes(edited(path.read_bytes(), changes))
    assert unfinished_images(folder) <= len(WANTED) * 5
    again = Progress(folder, {"data": "x", "cells": "no"})
    try:
        if may_refuse(lambda: again.resume(WANTED)) is not None:
            assert all(again.record(name) == RECORD | {"image": name} for name in WANTED if name in again)
            again.add(RECORD | {"image": "a.png"})
            assert again.record("a.png") == RECORD
    finally:
        again.close()


LINES = [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"9" * 6000, b"", b"[1, 2]"]


@pytest.mark.parametrize("line", LINES)
def test_lines_with_a_right_checksum_that_a_reader_of_json_chokes_on(folder, line):
    (folder / UNFINISHED).write_bytes(hashlib.sha256(line + b"\n").hexdigest()[:16].encode() + b" " + line + b"\n")
    with pytest.raises(UserError, match="first line is damaged"):
        Progress(folder, {"data": "x"}).resume({})


@pytest.mark.parametrize("line", LINES)
def test_lines_that_a_reader_of_json_chokes_on(folder, line):
    (folder / UNFINISHED).write_bytes(line + b"\n")
    with pytest.raises(UserError, match="first line is damaged"):
        Progress(folder, {"data": "x"}).resume({})


@pytest.fixture(scope="module")
def model():
    """A small ONNX model that has the form of an exported network."""
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnx and onnxruntime are not installed")
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info(INPUTS[0], TensorProto.FLOAT, ["n", 3, "h", "w"])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in OUTPUTS]
    nodes = [helper.make_node("Sigmoid", [INPUTS[0]], [name]) for name in OUTPUTS]
    made = helper.make_model(
        helper.make_graph(nodes, "g", [image], outputs), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    helper.set_model_props(made, {"format": FORMAT, "weights_sha256": "0" * 64, "epoch": "3"})
    return made.SerializeToString()


@fuzzed(60)
@given(changes=edits)
def test_bytes_of_an_exported_network(folder, model, changes):
    path = Path(folder / "m.onnx")
    assert OnnxModel(model, threads=1).facts["epoch"] == "3"
    path.write_bytes(edited(model, changes))
    may_refuse(lambda: OnnxModel(path, threads=1))


@pytest.mark.parametrize("text", [FORMAT.encode(), b"weights_sha256", OUTPUTS[0].encode(), INPUTS[0].encode()])
def test_text_of_an_exported_network_that_is_none(folder, model, text):
    (folder / "t.onnx").write_bytes(model.replace(text, b"\x80" + text[1:]))
    with pytest.raises(UserError, match="is not an exported network"):
        OnnxModel(folder / "t.onnx", threads=1)
