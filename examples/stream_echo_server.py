"""A TCP echo server with asyncio streams: one coroutine for each connection.

    python examples/stream_echo_server.py --port 8888
    python examples/stream_echo_client.py --port 8888      (in another terminal; or: nc 127.0.0.1 8888)

Ctrl-C stops it.
"""

import argparse
import asyncio
import contextlib

import velociloop


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    peer = writer.get_extra_info("peername")
    print("connected:   ", peer, flush=True)
    # A client that resets the connection is no error here, nor is the server's end.
    with contextlib.suppress(ConnectionError, asyncio.CancelledError), contextlib.closing(writer):
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()  # wait while the client does not read
    print("disconnected:", peer, flush=True)


async def main(port: int) -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", port)
    host, port = server.sockets[0].getsockname()
    print(f"stream echo server listening on {host}:{port}", flush=True)
    try:
        await asyncio.get_running_loop().create_future()  # for ever: Ctrl-C cancels main(), then each echo()
    finally:
        server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="TCP echo server with asyncio streams")
    parser.add_argument("--port", type=int, default=8888, help="0: any free one")
    try:
        velociloop.run(main(parser.parse_args().port))
    except KeyboardInterrupt:
        print("stopped")
