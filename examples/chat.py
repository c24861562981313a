"""A TCP chat room: what one says, all others read.

    python examples/chat.py --port 8888
    nc 127.0.0.1 8888      (in two other terminals: type a name, then talk)

Ctrl-C stops it.
"""

import argparse
import asyncio
import contextlib

import velociloop

MAX_UNREAD_BYTES = 1 << 16


class Room:
    """Who is here."""

    def __init__(self) -> None:
        self.writers: dict[str, asyncio.StreamWriter] = {}

    def tell(self, text: str, but: str = "") -> None:
        print(text, flush=True)
        for name, writer in list(self.writers.items()):
            if name == but:
                continue
            if writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                writer.transport.abort()  # does not read: the others must not wait, nor memory grow
            else:
                writer.write(f"{text}\n".encode())

    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        name = ""
        with contextlib.suppress(ConnectionError, asyncio.CancelledError), contextlib.closing(writer):
            writer.write(b"your name? ")
            wanted = (await reader.readline()).decode(errors="replace").strip()
            if not wanted or wanted in self.writers:
                writer.write(b"that name is taken, or none\n")
                return
            name = wanted
            self.writers[name] = writer
            self.tell(f"* {name} is here")
            while line := await reader.readline():
                self.tell(f"{name}: {line.decode(errors='replace').strip()}", but=name)
        if self.writers.pop(name, None):
            self.tell(f"* {name} has left")


async def main(port: int) -> None:
    server = await asyncio.start_server(Room().welcome, "127.0.0.1", port)
    host, port = server.sockets[0].getsockname()
    print(f"chat room listening on {host}:{port}", flush=True)
    try:
        await asyncio.get_running_loop().create_future()  # for ever: Ctrl-C cancels main(), then each welcome()
    finally:
        server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="TCP chat room")
    parser.add_argument("--port", type=int, default=8888, help="0: any free one")
    try:
        velociloop.run(main(parser.parse_args().port))
    except KeyboardInterrupt:
        print("stopped")
