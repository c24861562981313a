"""Need 31: the hooks by which frameworks take a loop."""

from __future__ import annotations

import socket

import pytest
from support import run_child

OURS = "velociloop"


@pytest.mark.parametrize("name", ["velociloop:new_event_loop", "velociloop:Loop"])
def test_need_31_uvicorn_takes_a_factory(name: str) -> None:
    """`uvicorn --loop module:factory`."""
    done = run_child(
        f"""
        import uvicorn, urllib.request

        async def app(scope, receive, send):
            loop = asyncio.get_running_loop()
            await send({{"type": "http.response.start", "status": 200, "headers": []}})
            await send({{"type": "http.response.body", "body": f"{{type(loop).__module__}}".encode()}})

        config = uvicorn.Config(app, host=LOCALHOST, port=0, loop={name!r}, lifespan="off", log_level="warning")
        server = uvicorn.Server(config)

        def ask():
            while not server.started:
                threading.Event().wait(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            print(urllib.request.urlopen(f"http://{{LOCALHOST}}:{{port}}/").read().decode())
            server.should_exit = True

        thread = threading.Thread(target=ask)
        thread.start()
        server.run()
        thread.join()
        """,
        OURS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "velociloop.loop\n", done.stderr


def test_need_31_aiohttp_runs_on_a_given_loop() -> None:
    """`aiohttp.web.run_app(loop=...)` and the client on a loop of its own in a thread; Ctrl-C ends it."""
    done = run_child(
        """
        import aiohttp, velociloop
        from aiohttp import web

        async def answer(request):
            return web.Response(text=type(asyncio.get_running_loop()).__name__)

        async def ask():
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://{LOCALHOST}:{listener.getsockname()[1]}/") as response:
                    print(await response.text())

        def client():
            velociloop.run(ask())
            os.kill(os.getpid(), signal.SIGINT)

        async def start(app):
            thread.start()

        app = web.Application()
        app.router.add_get("/", answer)
        app.on_startup.append(start)
        listener = socket.create_server((LOCALHOST, 0))
        thread = threading.Thread(target=client)
        web.run_app(app, sock=listener, loop=velociloop.new_event_loop(), print=None)
        thread.join()
        """,
        OURS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Loop\n", done.stderr


def test_need_31_anyio_takes_a_loop_factory() -> None:
    pytest.importorskip("anyio", reason="anyio is no dependency of the tests, and is there only by chance")
    done = run_child(
        """
        import anyio, velociloop

        async def main():
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 0.001)
            assert await anyio.to_thread.run_sync(lambda: 7) == 7
            listener = await anyio.create_tcp_listener(local_host=LOCALHOST)

            async def handle(client):
                async with client:
                    await client.send(await client.receive())

            async with anyio.create_task_group() as group:
                group.start_soon(listener.serve, handle)
                port = listener.extra(anyio.abc.SocketAttribute.local_port)
                async with await anyio.connect_tcp(LOCALHOST, port) as stream:
                    await stream.send(b"hello")
                    assert await stream.receive() == b"hello"
                group.cancel_scope.cancel()
            await listener.aclose()
            return type(asyncio.get_running_loop()).__name__

        print(anyio.run(main, backend_options={"loop_factory": velociloop.new_event_loop}))
        """,
        OURS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Loop\n", done.stderr


async def test_need_31_pytest_asyncio_runs_this_very_test(request: pytest.FixtureRequest) -> None:
    """`pytest_asyncio_loop_factories`, by which this suite runs (conftest.py)."""
    import asyncio

    ours = type(asyncio.get_running_loop()).__module__.startswith("velociloop")
    # A test of a single variant has no name of it.
    assert ours is ("[asyncio]" not in request.node.name)
    assert socket.getdefaulttimeout() is None
