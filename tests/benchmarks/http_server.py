"""The HTTP kinds of echo_server.py: one handler that answers 1 kB, on aiohttp or on uvicorn with httptools."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

BODY = b"velociloop" * 102 + b"1024"


async def start(kind: str, listener: socket.socket) -> Awaitable[None] | None:
    """Serve on `listener`; returns what the server runs in, None if that is the loop alone."""
    return await (_start_aiohttp(listener) if kind == "aiohttp" else _start_uvicorn(listener))


async def _start_aiohttp(listener: socket.socket) -> None:
    web: Any = importlib.import_module("aiohttp.web")

    async def answer(request: Any) -> Any:
        return web.Response(body=BODY)

    application = web.Application()
    application.router.add_get("/", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener).start()


async def _start_uvicorn(listener: socket.socket) -> Awaitable[None]:
    uvicorn: Any = importlib.import_module("uvicorn")
    headers = [(b"content-length", str(len(BODY)).encode())]

    async def application(
        scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": BODY})

    config = uvicorn.Config(
        application, http="httptools", loop="none", ws="none", lifespan="off", log_level="warning", access_log=False
    )
    running: Awaitable[None] = uvicorn.Server(config).serve(sockets=[listener])
    return running
