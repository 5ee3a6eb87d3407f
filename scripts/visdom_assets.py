"""The scripts, styles and fonts of visdom's page, from their npm packages instead of from the web at every first start.

visdom's wheel holds its own script only; its server fetches the rest from several web servers when it first starts and
ends where it cannot. Here they come through npm, from the registry that npm is set to, into a folder of the user's
cache. Every package is checked against the hash that is written below, and every file again at each start.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from util.errors import UserError
from util.files import atomic_write, make_folder, unwritable

MANIFEST = "assets.json"  # written last: the SHA-256 of every file that was fetched
NPM_SECONDS = 300
_USER_STYLE = "../user/style.css"  # a line of visdom's page that names a file outside of its static folder


class Package(NamedTuple):
    """An npm package and the files of it that visdom's page needs.

    Attributes:
        name, version: as npm knows it.
        integrity: its tarball's hash as npm writes it, SHA-512 in base64.
        files: (member of the package, place under visdom's static folder).
    """

    name: str
    version: str
    integrity: str
    files: tuple[tuple[str, str], ...]


_FONT = "fonts/glyphicons-halflings-regular"
_MATHJAX = (
    "MathJax.js",
    "config/Safe.js",
    "config/TeX-AMS-MML_HTMLorMML.js",
    "extensions/Safe.js",
    "jax/output/SVG/config.js",
    "jax/output/SVG/jax.js",
    "jax/output/SVG/fonts/TeX/fontdata.js",
    "jax/output/SVG/fonts/TeX/Size1/Regular/Main.js",
)
_SHARED = (
    Package(
        "jquery",
        "3.1.1",
        "zuiWRmx65Kd1oFGdWLvAjbsumdOBFvs3r1vuqCyKFF79R7exBHNbiNEJ8LR+xkzgfxqBznMD/4Cv6PHXS6mvEw==",
        (("dist/jquery.min.js", "js/jquery.min.js"),),
    ),
    Package(
        "bootstrap",
        "3.3.7",
        "qcFaisBrcBhTFkz1IUnGDYnX6ZWfFzH8zOixUDtHW9Ip+r+7MfMFav2rzy7cIHc7rgIg7xjhWBoo1mS/U26j4g==",
        (
            ("dist/js/bootstrap.min.js", "js/bootstrap.min.js"),
            ("dist/css/bootstrap.min.css", "css/bootstrap.min.css"),
            *((f"dist/{_FONT}.{kind}", f"{_FONT}.{kind}") for kind in ("eot", "woff2", "woff", "ttf")),
            (f"dist/{_FONT}.svg", f"{_FONT}.svg#glyphicons_halflingsregular"),
        ),
    ),
    Package(
        "react",
        "16.2.0",
        "ZmIomM7EE1DvPEnSFAHZn9Vs9zJl5A9H7el0EGTE6ZbW9FKe/14IYAlPbC8iH25YarEQxZL+E8VW7Mi7kfQrDQ==",
        (("umd/react.production.min.js", "js/react-react.min.js"),),
    ),
    Package(
        "react-dom",
        "16.2.0",
        "zpGAdwHVn9K0091d+hr+R0qrjoJ84cIBFL2uU60KvWBPfZ7LPSrfqviTxGHWN0sjPZb2hxWzMexwrvJdKePvjg==",
        (("umd/react-dom.production.min.js", "js/react-dom.min.js"),),
    ),
    Package(
        "react-modal",
        "3.1.10",
        "7b77AGWCkdg0YOf/qcYIGCpuwbxRwOA8P3UrUovk4grUNv+idOmHovJAx/Dcd3fuwHtgixxVjpcjVG60985MSA==",
        (("dist/react-modal.min.js", "js/react-modal.min.js"),),
    ),
    Package(
        "plotly.js-dist-min",
        "2.11.1",
        "F9WWNht0D3yBLZGHbLoJNfvplXvy+GUPSsA/lCbMuYd/UwzSu6Vmyprxlps9Einw1LDS1hYBrJeioK0lE3ieXA==",
        (("plotly.min.js", "js/plotly-plotly.min.js"),),
    ),
    Package(
        "sjcl",
        "1.0.7",
        "xQbiwKfiAj6vyk44ANJ5RRymALRdRZOuRoKNYkWUU404p/RFXmMaay1Z5vRn30GJjkD+psox4Jd38jZojSuNYA==",
        (("sjcl.js", "js/sjcl.js"),),
    ),
    Package(
        "layout-bin-packer",
        "1.4.0",
        "dQOZnajbOBGIcS9YlzKrkRtMCGa2oEpyf1zGRn93suphSvPclJe54Sbgtb053GJ21DUk84IBzaeQvjn+Gb10fA==",
        (
            ("dist/layout-bin-packer.js", "js/layout_bin_packer.js"),
            ("dist/layout-bin-packer.js.map", "js/layout-bin-packer.js.map"),
        ),
    ),
    Package(
        "d3",
        "3.5.17",
        "yFk/2idb8OHPKkbAL8QaOaqENNoMhIaSHZerk3oQsECwkObkCpJyjYwCe+OHiq6UEdhe1m8ZGARRRO3ljFjlKg==",
        (("d3.min.js", "js/d3.v3.min.js"),),
    ),
    Package(
        "d3-selection-multi",
        "1.0.1",
        "mEnRkJ6A+Otd1LuRPV3az+s/RLDmIEhuz/MnT21O2nPcWNH7wZotdIlRjMA4Wpr+n7AESQ5fD8v1J3nL2Mnw9g==",
        (("build/d3-selection-multi.js", "js/d3-selection-multi.v1.js"),),
    ),
    Package(
        "save-svg-as-png",
        "1.4.17",
        "7QDaqJsVhdFPwviCxkgHiGm9omeaMBe1VKbHySWU6oFB2LtnGCcYS13eVoslUgq6VZC6Tjq/HddBd1K6p2PGpA==",
        (("lib/saveSvgAsPng.js", "js/saveSvgAsPng.js"),),
    ),
    Package(
        "classnames",
        "2.2.5",
        "DTt3GhOUDKhh4ONwIJW4lmhyotQmV2LjNlGK/J2hkwUcqcbKkCLAdJPtxQnxnlc7SR3f1CEXCyMmc7WLUsWbNA==",
        (("index.js", "fonts/classnames"),),
    ),
)
_STYLES = "css/styles.css"
_PACKAGES = {
    "0.2": (
        *_SHARED,
        Package(
            "react-resizable",
            "1.4.6",
            "4zLORO51u0/mlDsrVCAA4p266d+3mb2ZMNdiWOotAh/PdnfrRzZhgePmKE08PSQatXVIfMjmyD+Sapay8tmxdQ==",
            ((_STYLES, "css/react-resizable-styles.css"),),
        ),
        Package(
            "react-grid-layout",
            "0.16.3",
            "ytP92EqUjqcFhGzvdeKrK610dQ04GdFwRCWtD6PoeL5wR3liETcFISO7k8RBqnosV86JtXf/DwIfrL0COLs0gg==",
            ((_STYLES, "css/react-grid-layout-styles.css"),),
        ),
        Package(
            "mathjax",
            "2.7.5",
            "OzsJNitEHAJB3y4IIlPCAvS0yoXwYjlo2Y4kmm9KQzyIBZt2d8yKRalby3uTRNN4fZQiGL2iMXjpdP1u2Rq2DQ==",
            tuple((member, f"js/mathjax/2.7.5/{member}") for member in _MATHJAX),
        ),
    ),
    "0.3": (
        *_SHARED,
        Package(
            "react-resizable",
            "3.1.3",
            "liJBNayhX7qA4tBJiBD321FDhJxgGTJ07uzH5zSORXoE8h7PyEZ8mLqmosST7ppf6C4zUsbd2gzDMmBCfFp9Lw==",
            ((_STYLES, "css/react-resizable-styles.css"),),
        ),
        Package(
            "react-grid-layout",
            "2.2.3",
            "OAEJHBxmfuxQfVtZwRzmsokijGlBgzYIJ7MUlLk/VSa43SaGzu15w5D0P2RDrfX5EvP9POMbL6bFrai/huDzbQ==",
            ((_STYLES, "css/react-grid-layout-styles.css"),),
        ),
        Package(
            "mathjax",
            "3.2.2",
            "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
            (("es5/tex-mml-svg.js", "js/mathjax/3.2.2/es5/tex-mml-svg.js"),),
        ),
    ),
}


def packages_of(version: str) -> tuple[Package, ...]:
    """What the page of a visdom version needs.

    Raises:
        UserError: that version's page is not known here.
    """
    packages = _PACKAGES.get(".".join(version.split(".")[:2]))
    if packages is None:
        raise UserError(
            f"visdom {version}: what its page needs is not known here",
            expected=" or ".join(f"visdom {known}" for known in _PACKAGES),
            found=f"visdom {version}",
            remedy="install what requirements.txt names, or start visdom's own server where there is a network",
        )
    return packages


def default_folder(version: str) -> Path:
    """Where the page of a visdom version is kept: under the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "3-TierDCFNet" / f"visdom-{version}"


def whole(folder: Path) -> bool:
    """Whether the page is there with every file as it was fetched."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(hashes) and all(_sha256((folder / path).read_bytes()) == value for path, value in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def prepare_page(version: str, static: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Make the folder that a visdom server can serve without a network; nothing is done where it is there and whole.

    Args:
        version: of visdom.
        static: visdom's own static folder, which is left as it is.
        folder: where the page goes; replaced when it is not whole.
        say: called with a line of progress after each package.

    Raises:
        UserError: npm is missing or fails, a package is not what it was, or the folder cannot be written.
    """
    if whole(folder):
        return
    packages = packages_of(version)
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            "visdom's page needs scripts that are not here yet, and npm, which fetches them, is not installed",
            remedy=f"install Node.js with npm; or copy the folder {folder} from a machine where this command has run;"
            " or, where there is a network, start visdom's own server: python -m visdom.server -bind_local",
        )
    make_folder(folder.parent)
    say(f"fetching visdom's page into {folder} (once; about 25 MB)")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".visdom-") as scratch:
        new = Path(scratch) / "page"
        try:
            shutil.copytree(static, new)
            hashes = _unpack_all(npm, packages, new, say)
            _drop_user_style(new / "index.html")
            atomic_write(new / MANIFEST, json.dumps(hashes, indent=1) + "\n")
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
        except OSError as error:
            raise unwritable(folder, error) from None


def _unpack_all(npm: str, packages: tuple[Package, ...], new: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Fetch the packages and put their files into the page; returns each file's SHA-256."""
    hashes = {}
    for position, package in enumerate(packages, start=1):
        begun = time.monotonic()
        tarball = checked(package, fetch(npm, package))
        for path, data in members(package, tarball).items():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            (new / path).write_bytes(data)
            hashes[path] = _sha256(data)
        size, took = len(tarball) / 1000, time.monotonic() - begun
        say(f"  [{position:>2}/{len(packages)}] {package.name} {package.version}  {size:,.0f} kB  {took:.1f} s")
    return hashes


def fetch(npm: str, package: Package) -> bytes:
    """A package's tarball, through npm and with its settings.

    Raises:
        UserError: npm did not give it.
    """
    spec = f"{package.name}@{package.version}"
    command = [npm, "pack", "--silent", "--ignore-scripts", "--fetch-retries=1", "--fetch-timeout=60000", spec]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            done = subprocess.run(
                command, cwd=scratch, capture_output=True, text=True, timeout=NPM_SECONDS, check=False
            )
            said = " ".join((done.stderr or done.stdout).split())[-300:]
        except subprocess.TimeoutExpired:
            said = f"no end after {NPM_SECONDS} s"
        tarballs = list(Path(scratch).glob("*.tgz"))
        if len(tarballs) == 1:
            return tarballs[0].read_bytes()
    raise UserError(
        f"npm did not fetch {spec}, which visdom's page needs",
        found=said or "no word from npm",
        remedy=f"try `npm pack {spec}` to see why (a network, a proxy, `npm config get registry`), then run this again;"
        " or copy the cache folder from a machine where it has run",
    )


def checked(package: Package, tarball: bytes) -> bytes:
    """The tarball, if it is the one whose hash is written here.

    Raises:
        UserError: it is another.
    """
    found = base64.b64encode(hashlib.sha512(tarball).digest()).decode()
    if found != package.integrity:
        raise UserError(
            f"the npm package {package.name} {package.version} is not the one that this toolkit was tried with",
            expected=f"sha512-{package.integrity}",
            found=f"sha512-{found}",
            remedy="nothing of it was kept; try another registry (npm config set registry ...), or ask who runs yours",
        )
    return tarball


def members(package: Package, tarball: bytes) -> dict[str, bytes]:
    """The files that are needed of a package, by their place under the static folder.

    Raises:
        UserError: one is missing.
    """
    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
        # The first part of every name is the package's folder, which is not called alike in all of them.
        held = {member.name.partition("/")[2]: member for member in archive.getmembers() if member.isfile()}
        found = {}
        for name, place in package.files:
            file = archive.extractfile(held[name]) if name in held else None
            if file is None:
                raise UserError(f"the npm package {package.name} {package.version} holds no {name}")
            found[place] = file.read()
    return found


def _drop_user_style(page: Path) -> None:
    """Take the line out of visdom's page whose file lies outside of the static folder: the server would refuse it."""
    lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
    page.write_text("".join(line for line in lines if _USER_STYLE not in line), encoding="utf-8")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
