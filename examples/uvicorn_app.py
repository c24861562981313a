"""An ASGI application under uvicorn (0.36 or later).

    pip install uvicorn
    python examples/uvicorn_app.py --port 8000
    curl http://127.0.0.1:8000/      (in another terminal)

Or without this file's last lines:

    uvicorn --app-dir examples --loop velociloop:new_event_loop uvicorn_app:app

`--loop asyncio` runs the same on the standard library's loop. Ctrl-C stops it.
"""

import argparse
import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

Message = dict[str, Any]

TEXT = (b"velociloop serves this line. " * 40)[:1023] + b"\n"
ITEMS = {"items": [{"number": number, "name": f"item number {number}"} for number in range(24)]}


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """/ is 1 kB of text, /json 1 kB of JSON, /echo the body that was sent, /loop the loop that serves this."""
    if scope["type"] != "http":
        return  # no lifespan events, no WebSockets
    status, kind = 200, b"text/plain"
    match scope["path"]:
        case "/":
            body = TEXT
        case "/json":
            body, kind = json.dumps(ITEMS).encode(), b"application/json"
        case "/loop":
            body = type(asyncio.get_running_loop()).__module__.partition(".")[0].encode()
        case "/echo":
            body, more = b"", True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
        case _:
            status, body = 404, b"not found\n"
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="ASGI application under uvicorn")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    parser.add_argument("--loop", choices=("velociloop", "asyncio"), default="velociloop")
    arguments = parser.parse_args()
    config = uvicorn.Config(
        app,
        loop="velociloop:new_event_loop" if arguments.loop == "velociloop" else "asyncio",
        lifespan="off",
        log_level="warning",
        timeout_graceful_shutdown=1,
        timeout_keep_alive=75,  # seconds, as aiohttp's: 5 are few for a browser that is being read from
    )
    with socket.create_server(("127.0.0.1", arguments.port)) as listener:
        host, port = listener.getsockname()
        print(f"listening on http://{host}:{port}", flush=True)
        # uvicorn stops in order at Ctrl-C, and then raises what it stands for.
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    print("stopped")
