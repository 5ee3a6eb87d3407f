#!/usr/bin/env python3
"""Start a visdom server for this machine alone, which needs no network once it has run.

    bash scripts/visdom_server.sh
    bash scripts/visdom_server.sh --port 8098
    bash scripts/visdom_server.sh --fetch_only

What its page needs is fetched once, through npm, into a folder of your cache. It listens on 127.0.0.1 and asks for no
password: from another machine, reach it through an ssh tunnel (docs/live_view.md).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import socket
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from scripts.visdom_assets import default_folder, prepare_page  # noqa: E402 - the path must be set first
from util.errors import UserError, run_door  # noqa: E402
from util.files import make_folder  # noqa: E402

HOST = "127.0.0.1"


def installed_version() -> str:
    """The version of the visdom that is installed.

    Raises:
        UserError: there is none, or its server cannot work with the tornado that is there.
    """
    try:
        version, tornado = importlib.metadata.version("visdom"), importlib.metadata.version("tornado")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed for {sys.executable}",
            remedy="install what requirements.txt names (bash scripts/environment.sh), or name another interpreter with"
            " PYTHON=...",
        ) from None
    if version.startswith("0.2.") and tuple(map(int, tornado.split(".")[:2])) >= (6, 6):
        raise UserError(
            f"visdom {version} answers 403 on every page with this tornado",
            expected="tornado below 6.6",
            found=f"tornado {tornado}",
            remedy="pip install 'tornado>=6.5,<6.6'",
        )
    return version


def own_static() -> Path:
    """The static folder inside the visdom package, found without importing it."""
    spec = importlib.util.find_spec("visdom")
    if spec is None or spec.origin is None:
        raise UserError("visdom is not installed", remedy="pip install -r requirements.txt")
    return Path(spec.origin).parent / "static"


def check_port(port: int) -> None:
    """Refuse a port that cannot be had.

    Raises:
        UserError: it is taken, or needs rights that the user does not have.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"port {port} of {HOST} cannot be had",
                found=error.strerror or str(error),
                remedy="a visdom server may be there already; if not, choose another (--port), and train with"
                " --display_port set to it",
            ) from None


def serve(version: str, page: Path, port: int, env_path: Path) -> None:
    """Run the server until it is stopped."""
    import visdom.server.app
    import visdom.server.run_server

    settings = visdom.server.app.tornado_settings
    settings["static_path"] = settings["template_path"] = str(page)

    def announce(_: int) -> None:
        print(
            f"visdom {version} is at http://localhost:{port}, for this machine alone; stop it with Ctrl-C\n"
            f"train with:  --display_id 1 --display_port {port}",
            flush=True,
        )

    visdom.server.run_server.start_server(
        port=port, base_url="", env_path=f"{env_path}/", bind_local=True, print_func=announce
    )


def main() -> int:
    """Fetch what is missing, then serve."""
    parser = argparse.ArgumentParser(
        prog="visdom_server.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8097, help="port on 127.0.0.1 (default: 8097)")
    parser.add_argument(
        "--env_path",
        type=Path,
        default=Path.home() / ".visdom",
        help="folder of the environments that are saved on the page (default: ~/.visdom)",
    )
    parser.add_argument(
        "--page", type=Path, help="folder of the page (default: 3-TierDCFNet/visdom-VERSION in your cache folder)"
    )
    parser.add_argument("--fetch_only", action="store_true", help="fetch what the page needs and leave")
    given = parser.parse_args()
    version = installed_version()
    page = given.page or default_folder(version)
    if not given.fetch_only:
        check_port(given.port)
    prepare_page(version, own_static(), page, lambda line: print(line, flush=True))
    if given.fetch_only:
        print(f"visdom's page is in {page}")
        return 0
    serve(version, page, given.port, make_folder(given.env_path))
    return 0


if __name__ == "__main__":
    run_door(main)
