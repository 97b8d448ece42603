"""Serves the page until it is told to end."""

import os
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from pipeline.errors import UserError
from pipeline.serve.studio import Studio

END_SECONDS = 1  # that connections are waited for at the end


def run(model: Path, results: Path, *, host: str, port: int, device: str) -> None:
    """Prints the address once it answers. Ends at Ctrl-C or SIGTERM.

    Raises: UserError if there is no model, or the address cannot be had.
    """
    with _listen(host, port) as listening, tempfile.TemporaryDirectory(prefix="shoestring-") as pictures:
        studio = Studio(model, results, device)
        studio.stages()  # a broken one is better told here than on the page
        # Read when gradio is imported. What it writes is gone with the server.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "0", "GRADIO_TEMP_DIR": pictures}
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        with suppress(KeyboardInterrupt):
            _serve(studio, listening, host)


def _listen(host: str, port: int) -> socket.socket:
    """Port 0 is any that is free."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = os.strerror(error.errno) if (error.errno or 0) > 0 else error.strerror  # negative: of looking up the name
        raise UserError(f"--host {host} --port {port}: {reason}; name another address or port") from error


def _serve(studio: Studio, listening: socket.socket, host: str) -> None:
    import gradio
    import uvicorn
    from fastapi import FastAPI

    from pipeline.serve.guard import Guard, is_loopback
    from pipeline.serve.page import CSS, build, theme

    port = listening.getsockname()[1]
    app = gradio.mount_gradio_app(
        FastAPI(openapi_url=None), build(studio), "/", host, port,
        footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, enable_monitoring=False, pwa=False,
        show_error=False, max_file_size=1, theme=theme(), css=CSS,
    )  # fmt: skip
    guarded = Guard(app, loopback=is_loopback(host))
    if not is_loopback(host):
        print(f"warning: --host {host}: everyone who can reach this machine can draw; there is no password", file=sys.stderr)
    name = f"[{host}]" if ":" in host else host

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"http://{name}:{port} (Ctrl-C ends it)", flush=True)

    Server(uvicorn.Config(guarded, log_level="warning", timeout_graceful_shutdown=END_SECONDS)).run([listening])
