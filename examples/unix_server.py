"""A server on a Unix socket that tells the time and who asks.

    python examples/unix_server.py --path /tmp/velociloop.sock
    nc -U /tmp/velociloop.sock      (in another terminal)

Ctrl-C stops it and removes the socket's file.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import struct
import time

import velociloop


def process_id(sock: socket.socket) -> str:
    """Who is at the other end of `sock`, as the kernel knows it (Linux)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return "unknown"
    pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return str(pid)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.CancelledError), contextlib.closing(writer):
        pid = process_id(writer.get_extra_info("socket"))
        print(f"process {pid} asks for the time", flush=True)
        writer.write(f"it is {time.ctime()}, process {pid}\n".encode())
        await writer.drain()


async def main(path: str) -> None:
    server = await asyncio.start_unix_server(answer, path)
    print(f"Unix-socket server listening on {path}", flush=True)
    try:
        await asyncio.get_running_loop().create_future()  # for ever: Ctrl-C cancels main()
    finally:
        server.close()
        with contextlib.suppress(FileNotFoundError):  # Python 3.13 removes it with the server
            os.unlink(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="server on a Unix socket")
    parser.add_argument("--path", default="/tmp/velociloop.sock")
    try:
        velociloop.run(main(parser.parse_args().path))
    except KeyboardInterrupt:
        print("stopped")
