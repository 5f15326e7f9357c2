"""`memory serve`: the HTTP API."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from memory_cli import output
from memory_cli.opening import Opened, opened_service, opened_store
from memory_service.bootstrap import Service
from memory_service.errors import ConfigurationError
from memory_service.settings import Settings, read_settings

if TYPE_CHECKING:
    import uvicorn

    from memory_service.api.metrics import Metrics

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; beyond this machine with keys.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="0 takes a free one.")
    ] = 8000,
    grace: Annotated[
        float,
        typer.Option(min=0.0, metavar="SECONDS", help="Time for running answers at stop."),
    ] = 30.0,
) -> None:
    """Serve OpenAI's chat API with the memory, for many users at once.

    Without any API key (`memory keys create`) only this machine is served. Ctrl-C or SIGTERM
    finishes the running answers and ends; turns that are not encoded yet stay pending.
    """
    settings = read_settings()
    with opened_store(settings) as store:
        has_keys = store.run(store.it.keys.are_required())
    if not has_keys and host not in LOOPBACK:
        raise ConfigurationError(
            "host",
            f"{host} would let anybody in: there is no API key",
            "make one with `memory keys create TENANT`, or serve 127.0.0.1",
        )
    from memory_service.api.metrics import Metrics

    metrics = Metrics()
    with opened_service(settings, metrics) as opened:
        if not has_keys:
            output.note("no API keys: only this machine is served", style="yellow")
        opened.run(_serve(opened, settings, metrics, (host, port), grace))


async def _serve(
    opened: Opened[Service],
    settings: Settings,
    metrics: "Metrics",
    address: tuple[str, int],
    grace: float,
) -> None:
    import uvicorn

    from memory_service.api.app import create_app

    service = opened.it
    await service.queue.start()
    service.forgotten_elsewhere.start()
    service.expire_turns.start()
    host, port = address
    config = uvicorn.Config(
        create_app(service, settings, metrics, is_local=host in LOOPBACK),
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # paths name users
        timeout_graceful_shutdown=max(1, round(grace)),
        server_header=False,
    )
    server = _server_class()(config)
    try:
        await server.serve()
        if not server.started:
            raise ConfigurationError("port", f"{host}:{port} is in use", "choose another --port")
        await service.engine.drain(grace)
    finally:
        await service.jobs.stop()
        await service.expire_turns.stop()
        await service.forgotten_elsewhere.stop()
        await service.queue.stop()


def _server_class() -> "type[uvicorn.Server]":
    import uvicorn

    class Server(uvicorn.Server):
        """Stops by our signals alone, and says where it listens."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            loop = asyncio.get_running_loop()
            before = signal.getsignal(signal.SIGINT)
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.handle_exit, number, None)
            try:
                yield
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(number)
                signal.signal(signal.SIGINT, before)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for one in self.servers:
                for bound in one.sockets:
                    host, port, *_ = bound.getsockname()
                    output.note(f"listening on http://{host}:{port}")

    return Server
