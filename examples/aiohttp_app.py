"""An aiohttp application.

    pip install aiohttp
    python examples/aiohttp_app.py --port 8080
    curl http://127.0.0.1:8080/json      (in another terminal)

`--loop asyncio` runs the same on the standard library's loop. Ctrl-C stops it.
"""

import argparse
import asyncio

from aiohttp import web

import velociloop

TEXT = ("velociloop serves this line. " * 40)[:1023] + "\n"
ITEMS = {"items": [{"number": number, "name": f"item number {number}"} for number in range(24)]}


async def text(request: web.Request) -> web.Response:
    """1 kB of text."""
    return web.Response(text=TEXT)


async def json(request: web.Request) -> web.Response:
    """1 kB of JSON, encoded for each request."""
    return web.json_response(ITEMS)


async def echo(request: web.Request) -> web.Response:
    """The body that was sent, however large."""
    return web.Response(body=await request.read())


async def loop_name(request: web.Request) -> web.Response:
    """Which loop serves this."""
    return web.Response(text=type(asyncio.get_running_loop()).__module__.partition(".")[0])


def make_app() -> web.Application:
    """The application, also for another runner: `aiohttp.web.run_app(make_app(), loop=...)`."""
    app = web.Application(client_max_size=1 << 26)
    app.router.add_get("/", text)
    app.router.add_get("/json", json)
    app.router.add_get("/loop", loop_name)
    app.router.add_post("/echo", echo)
    return app


async def main(port: int) -> None:
    runner = web.AppRunner(make_app(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        host, port = runner.addresses[0][:2]
        print(f"listening on http://{host}:{port}", flush=True)
        await asyncio.get_running_loop().create_future()  # for ever: Ctrl-C cancels main()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="aiohttp application")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    parser.add_argument("--loop", choices=("velociloop", "asyncio"), default="velociloop")
    arguments = parser.parse_args()
    factory = velociloop.new_event_loop if arguments.loop == "velociloop" else asyncio.SelectorEventLoop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main(arguments.port))
    except KeyboardInterrupt:
        print("stopped")
