"""`unmask serve`: models over HTTP."""

import asyncio
import ipaddress
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError, require
from .model import named


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Model folders, runs, exports or Hub ids; NAME=MODEL names one. By default the model in the box, as 'box'.",
            envvar="UNMASK_MODELS",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at.", envvar="UNMASK_HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any that is free.", envvar="UNMASK_PORT")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="What clients must send as 'Authorization: Bearer KEY'; better set in the environment.",
            envvar="UNMASK_API_KEY",
            show_default=False,
        ),
    ] = None,
    max_concurrent: Annotated[
        int, typer.Option(min=1, help="Requests that wait or run; more get a 429.", envvar="UNMASK_MAX_CONCURRENT")
    ] = 64,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens that are run together; by default what suits the device.", envvar="UNMASK_MAX_TOKENS"),
    ] = None,
    max_inputs: Annotated[int, typer.Option(min=1, help="Texts that a request may hold.", envvar="UNMASK_MAX_INPUTS")] = 128,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Bytes that a request may have.", envvar="UNMASK_MAX_BODY_BYTES")] = 2**20,
    max_text_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that a text to be scored may have.", envvar="UNMASK_MAX_TEXT_TOKENS")
    ] = 1024,
    request_seconds: Annotated[
        float, typer.Option(min=0.001, help="That an answer may take; then a 503.", envvar="UNMASK_REQUEST_SECONDS")
    ] = 60.0,
    client_seconds: Annotated[
        float,
        typer.Option(min=0.001, help="That a client may take to send a request, or to receive its answer.", envvar="UNMASK_CLIENT_SECONDS"),
    ] = 20.0,
    preload: Annotated[
        bool, typer.Option("--preload", help="Load all models before listening, not when they are asked.", envvar="UNMASK_PRELOAD")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...", envvar="UNMASK_DEVICE")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16, or auto: whichever is faster here.", envvar="UNMASK_PRECISION")] = "auto",
) -> None:
    """Serve models over HTTP, requests that come together being run together.

    `InferenceClient(model="http://HOST:PORT/models/NAME").fill_mask(...)` of huggingface_hub works; a page to play with is at /, the
    endpoints are listed at /docs. SIGHUP loads the models anew (a folder that has changed is noticed, too), SIGTERM ends the service when
    what it has accepted is answered.
    """  # fmt: skip
    require("fastapi", extra="serve", why="serving")
    require("uvicorn", extra="serve", why="serving")
    require("httptools", extra="serve", why="serving")
    require("prometheus_client", extra="serve", why="serving")
    from ..serve.app import create_app
    from ..serve.limits import Limits
    from ..serve.models import check_paths, parse_names
    from ..serve.server import listen, run

    if precision not in ("fp32", "bf16", "auto"):
        raise ConfigError(f"--precision {precision}; allowed: fp32, bf16, auto")
    if api_key is not None and not api_key.strip():
        raise ConfigError("--api-key is empty; give a key, or leave it out")
    limits = Limits(
        max_concurrent=max_concurrent, max_inputs=max_inputs, max_body_bytes=max_body_bytes, max_text_tokens=max_text_tokens,
        request_seconds=request_seconds, client_seconds=client_seconds,
    )  # fmt: skip
    paths = parse_names(models or [f"box={named(None)}"])
    check_paths(paths)
    for path in paths.values():
        if not Path(path).expanduser().exists():  # may be a slip of the pen: a service that never answers should not look well
            when = "now" if preload else "when it is first asked for; --preload does it at once"
            print(f"unmask serve: '{path}' is no folder here, so it is had from the Hub {when}", file=sys.stderr)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("unmask").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a line for whatever anybody sends would be theirs to write the log
    app = create_app(paths, limits=limits, api_key=api_key, device=device, precision=precision, max_tokens=max_tokens)
    with listen(host, port) as sock:
        if preload:
            asyncio.run(app.state.models.preload())
        if api_key is None and not _is_loopback(host):
            print(f"unmask serve: warning: {host} can be reached from other machines, and no key is asked for; give --api-key",
                  file=sys.stderr)  # fmt: skip
        shown = f"[{host}]" if ":" in host else host
        sys.setswitchinterval(0.001)  # the loop that talks to clients must not wait long for threads that make answers
        print(f"serving {', '.join(paths)} at http://{shown}:{sock.getsockname()[1]}", file=sys.stderr, flush=True)
        run(app, sock)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
