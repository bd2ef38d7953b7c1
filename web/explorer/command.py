"""`spanbert explore`: the models loaded, the address checked, and the explorer served or written into one file."""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass
from pathlib import Path

from spanbert.checkpoint.store import find_model
from spanbert.errors import UserError
from spanbert.files import check_writable
from spanbert.weights import bundled_path, encoder_path
from web.config import Limits, is_loopback

READER = "scratch"  # it shares the encoder's vocabulary, so a text has the same tokens in every view


@dataclass(frozen=True)
class ExploreConfig:
    """See in the browser how a model masks, attends, predicts and answers: http://127.0.0.1:8010."""

    model: Path | None = None
    """Model or run folder that is shown; heads that it lacks are said to be missing. Left out: the bundled encoder, with
    the bundled reader of the same vocabulary (scratch) for questions."""
    reader: Path | None = None
    """Another model for the questions alone, such as the bundled `reader`."""
    host: str = "127.0.0.1"
    """Address of this machine to listen on."""
    port: int = 8010
    """Port to listen on; 0 takes a free one."""
    html: Path | None = None
    """Write the explorer and its weights into one HTML file that needs no server, and end."""

    def check(self) -> None:
        """UserError for values that cannot be served with."""
        if not is_loopback(self.host):
            raise UserError(
                f"--host {self.host} can be reached from other machines, and the explorer knows no tokens: "
                "give 127.0.0.1, ::1 or localhost"
            )
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port {self.port}: ports are 0 … 65535")

    def folders(self) -> tuple[Path, Path | None]:
        """Of the model, and of the model for questions (None: the same, where it can)."""
        model = find_model(self.model if self.model is not None else encoder_path())
        if self.reader is not None:
            return model, find_model(self.reader)
        return model, None if self.model is not None else bundled_path(READER)


def run_explore(config: ExploreConfig) -> None:
    """Serve until SIGINT or SIGTERM. Raises UserError for what cannot be served or written."""
    config.check()
    if config.html is not None:
        _write(config, config.html)
        return
    try:
        import uvicorn

        from web.explorer.app import create_app
        from web.explorer.models import load_explorer
        from web.serve import listen, uvicorn_settings
    except ImportError as error:  # pragma: no cover
        raise UserError(
            f"`spanbert explore` needs more packages ({error.name}): pip install 'spanbert[serve]'"
        ) from None
    limits = Limits(text=20_000)
    with contextlib.closing(listen(config.host, config.port)) as listening:
        app = create_app(load_explorer(*config.folders()), limits)
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"the explorer is at http://{shown}:{port}", flush=True)
        uvicorn.Server(uvicorn_settings(app, limits)).run([listening])


def _write(config: ExploreConfig, path: Path) -> None:
    check_writable(path, "file", "--html")
    model, reader = config.folders()
    standalone = importlib.import_module("web.explorer.standalone")
    size = standalone.write_html(model, reader, path)
    print(f"wrote {path} ({size / 1e6:.1f} MB): open it in a browser")
