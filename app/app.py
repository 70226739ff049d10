"""Chat with a checkpoint in the browser, and serve it to OpenAI-compatible clients.

    python app/app.py --model runs/quickstart/dpo/model

Needs torch, transformers, gradio, fastapi and huggingface_hub only, so that the folder also runs as a Space.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by gradio when it is imported
# Written beside this file when the folder is bundled as a Space: {"model": …, "revision": …, …}.
SPACE_SETTINGS = Path(__file__).resolve().parent / "space.json"
ON_A_SPACE = "SPACE_ID" in os.environ
BEHIND_A_PROXY = (
    "behind a proxy: pass Host and X-Forwarded-For on (nginx: proxy_set_header Host $http_host), "
    "else the page is all 403"
)
ON_THIS_MACHINE = "for this machine only; behind a proxy set APP_USER and APP_PASSWORD"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line, then environment, then the Space's own settings."""
    own = json.loads(SPACE_SETTINGS.read_text(encoding="utf-8")) if SPACE_SETTINGS.is_file() else {}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--model",
        default=os.environ.get("CHECKPOINT", own.get("model")),
        help="checkpoint folder or Hub repository",
    )
    parser.add_argument("--revision", default=own.get("revision"), help="commit of the Hub repository")
    parser.add_argument(
        "--host", default="0.0.0.0" if ON_A_SPACE else "127.0.0.1",
        help="another address than this machine's needs APP_USER and APP_PASSWORD in the environment",
    )  # fmt: skip
    parser.add_argument("--port", type=_port, default=7860)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--trust-remote-code", action="store_true", default=own.get("trust_remote_code", False),
        help="run the model code a Foundry checkpoint ships, where modeling_foundry is not installed",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.model is None:
        parser.error("--model: give a checkpoint folder or a Hub repository (or set CHECKPOINT)")
    return arguments


def _port(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"expected 1 to 65535, found {text!r}")
    return int(text)


def find_credentials(host: str) -> tuple[str, str] | None:
    """User and password from the environment; None where the server is open, which is on this machine only.

    Raises:
        ValueError: another address without them, one without the other, or one that no client could send.
    """
    from guard import LOOPBACK

    names = ("APP_USER", "APP_PASSWORD")
    user, password = (os.environ.get(name, "") for name in names)
    if user and password:
        _check_sendable("APP_USER", user, ":")
        _check_sendable("APP_PASSWORD", password)
        return user, password
    if user or password:
        missing = names[1] if user else names[0]
        raise ValueError(f"{missing}: not set; set APP_USER and APP_PASSWORD, or neither")
    if host not in LOOPBACK and not ON_A_SPACE:
        raise ValueError(f"--host {host}: lets other machines in; set APP_USER and APP_PASSWORD first")
    return None


def _check_sendable(name: str, value: str, end: str = "") -> None:
    """A header and Gradio's login lose blanks at the ends, and basic's user ends at a colon."""
    if value != value.strip() or not value.isprintable() or (end and end in value):
        without = f", without {end!r}" if end else ""
        raise ValueError(
            f"{name}: expected printable characters, no blank or line's end at either end{without}"
        )


def make_application(arguments: argparse.Namespace, credentials: tuple[str, str] | None) -> Any:
    """The API with the page mounted at its root, behind the guard."""
    import gradio as gr
    from api import make_api
    from chat_model import ChatModel
    from chat_page import COPIES_WHAT_WAS_SAID, STYLE, THEME, make_page
    from connections import Unbuffered
    from guard import Guard

    chat = ChatModel(arguments.model, arguments.device, arguments.trust_remote_code, arguments.revision)
    application = gr.mount_gradio_app(
        make_api(chat, credentials), make_page(chat), path="/", auth=credentials, show_error=False,
        server_name=arguments.host, server_port=arguments.port, allowed_paths=[], blocked_paths=["/"],
        footer_links=[], ssr_mode=False, mcp_server=False, enable_monitoring=False, theme=THEME, css=STYLE,
        head=COPIES_WHAT_WAS_SAID,
    )  # fmt: skip
    application.add_middleware(
        Guard, only_loopback_hosts=credentials is None and not ON_A_SPACE, check_origin=not ON_A_SPACE
    )
    application.add_middleware(Unbuffered)
    return application


def bound_socket(host: str, port: int) -> socket.socket:
    """The address, taken before a model is loaded for it; nobody can connect until the server listens.

    Raises:
        ValueError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol by its name: asyncio turns Nagle's algorithm off only where it is told that this is TCP.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ValueError(f"--host {host} --port {port}: {error.strerror or error}; give another") from error
    return bound


def give_up(reason: str) -> NoReturn:
    print(f"error: {reason}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    arguments = parse_arguments()
    try:
        credentials = find_credentials(arguments.host)
        address = bound_socket(arguments.host, arguments.port)
    except ValueError as error:
        give_up(str(error))
    try:
        application = make_application(arguments, credentials)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        missing = "" if Path(arguments.model).exists() else "no such folder, and as a Hub repository: "
        give_up(f"--model {arguments.model}: {missing}{reason}")
    words = f"chat: http://{arguments.host}:{arguments.port}   API: /v1/chat/completions /generate /health"
    proxy = BEHIND_A_PROXY if credentials else ON_THIS_MACHINE
    make_server(application, f"{words}\n{proxy}").run(sockets=[address])


def make_server(application: Any, words: str = "") -> Any:
    """uvicorn's server, with bounds to its connections.

    Args:
        words: said once it answers, and a signal ends it in order.
    """
    import uvicorn
    from connections import BACKLOG, BoundedHTTP, most_connections

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if words:
                print(words, flush=True)

    BoundedHTTP.most_connections = most_connections()
    # An open page keeps a connection: do not wait for it when told to stop.  Below errors uvicorn logs a line for
    # every request that is none.
    settings = uvicorn.Config(
        application, http=BoundedHTTP, ws="none", log_level="error", backlog=BACKLOG, timeout_graceful_shutdown=2
    )  # fmt: skip
    return Server(settings)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # uvicorn raises it again when it has shut down; it may come while loading, too
        raise SystemExit(130) from None
