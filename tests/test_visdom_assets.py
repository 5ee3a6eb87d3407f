"""Fetching what visdom's page needs: through an npm that only pretends, without a network."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import re
import sys
import tarfile
from pathlib import Path

import pytest

from util.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


assets = script("visdom_assets")


def tarball(files, folder="package"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def package(name, files, data):
    integrity = base64.b64encode(hashlib.sha512(data).digest()).decode()
    return assets.Package(name, "1.0", integrity, files)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A page of two packages, and an npm that gives them and notes how often it was asked."""
    one = tarball({"dist/a.js": b"aaa", "else.js": b"-"})
    two = tarball({"b.css": b"bbb"}, folder="other-name")
    packages = (package("one", (("dist/a.js", "js/deep/a.js"),), one), package("two", (("b.css", "css/b.css"),), two))
    monkeypatch.setattr(assets, "packages_of", lambda version: packages)
    store, bin_folder = tmp_path / "store", tmp_path / "bin"
    for folder in (store, bin_folder, tmp_path / "static/css"):
        folder.mkdir(parents=True)
    (store / "one@1.0").write_bytes(one)
    (store / "two@1.0").write_bytes(two)
    (tmp_path / "static/index.html").write_text("<link a>\n<link rel=stylesheet href=../user/style.css>\n<b>\n")
    npm = bin_folder / "npm"
    npm.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nopen({str(tmp_path / 'asked')!r}, 'a').write(sys.argv[-1] + ' ')\n"
        f"shutil.copy({str(store)!r} + '/' + sys.argv[-1], sys.argv[-1] + '.tgz')\n"
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_folder))
    return tmp_path


def prepare(machine):
    said = []
    assets.prepare_page("0.2.4", machine / "static", machine / "cache/visdom", said.append)
    return said


def test_the_page_is_fetched_once_with_progress_and_again_when_it_is_damaged(machine):
    said = prepare(machine)
    assert [line.split()[:3] for line in said[1:]] == [["[", "1/2]", "one"], ["[", "2/2]", "two"]]
    page = machine / "cache/visdom"
    assert (page / "js/deep/a.js").read_bytes() == b"aaa"
    assert (page / "css/b.css").read_bytes() == b"bbb"
    assert (page / "index.html").read_text() == "<link a>\n<b>\n"
    assert "user" in (machine / "static/index.html").read_text(), "visdom's own folder is left alone"
    assert prepare(machine) == []
    assert (machine / "asked").read_text().split() == ["one@1.0", "two@1.0"]
    (page / "css/b.css").write_bytes(b"bbX")
    assert len(prepare(machine)) == 3
    assert (page / "css/b.css").read_bytes() == b"bbb"


def test_a_package_that_is_not_what_it_was_is_refused_and_nothing_kept(machine):
    (machine / "store/two@1.0").write_bytes(tarball({"b.css": b"evil"}))
    with pytest.raises(UserError, match=r"two 1\.0 is not the one"):
        prepare(machine)
    assert list((machine / "cache").iterdir()) == []


def test_npm_that_fails_or_is_missing_is_told_in_a_line(machine, monkeypatch):
    (machine / "store/one@1.0").unlink()
    with pytest.raises(UserError, match="npm did not fetch one@1.0") as error:
        prepare(machine)
    assert "FileNotFoundError" in error.value.found, "npm's own word"
    monkeypatch.setenv("PATH", str(machine))
    with pytest.raises(UserError, match="npm, which fetches them, is not installed"):
        prepare(machine)
    assert list((machine / "cache").iterdir()) == []


def test_a_package_without_the_file_is_told():
    data = tarball({"a": b""})
    with pytest.raises(UserError, match="holds no b"):
        assets.members(package("one", (("b", "js/b"),), data), data)


def test_every_file_that_the_page_names_is_fetched_or_visdoms_own():
    visdom = pytest.importorskip("visdom")
    static = Path(visdom.__file__).parent / "static"
    named = set(re.findall(r"""static_url\(["']([^"']+)""", (static / "index.html").read_text()))
    fetched = {place for known in assets.packages_of(visdom.__version__) for _, place in known.files}
    missing = {path for path in named - fetched if not (static / path).is_file()}
    assert missing == {"../user/style.css"}
    assert not [path for path in fetched if ".." in path or path.startswith("/")]


def test_versions(monkeypatch):
    assert {known.version for known in assets.packages_of("0.3.0") if known.name == "mathjax"} == {"3.2.2"}
    with pytest.raises(UserError, match="visdom 0.4.1"):
        assets.packages_of("0.4.1")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert assets.default_folder("0.2.4") == Path("/somewhere/3-TierDCFNet/visdom-0.2.4")


def test_a_tornado_that_visdom_cannot_serve_with_is_told(monkeypatch):
    serve = script("visdom_serve")
    versions = {"visdom": "0.2.4", "tornado": "6.6.1"}
    monkeypatch.setattr(serve.importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(UserError, match="403"):
        serve.installed_version()
    versions["tornado"] = "6.5.10"
    assert serve.installed_version() == "0.2.4"
