"""Need 3: no crash where things end: loops and transports dropped, collected or left open in every order.

Each runs in a child process with libuv's asserts on; its exit status tells.
"""

from __future__ import annotations

import pytest
from support import run_child

OPEN_EVERYTHING = """
import gc, random, ssl, tempfile, warnings, weakref

warnings.simplefilter("ignore")

class Keeps(asyncio.Protocol):
    # A cycle through the transport, so that only the collector ends it.
    def connection_made(self, transport):
        self.transport = transport
        self.itself = self
        transport.write(bytes(1 << 22))  # more than the kernel takes

async def open_everything(loop):
    found = []
    near, far = socket.socketpair()
    near.setblocking(False)
    found += [far, await loop.create_connection(Keeps, sock=near)]
    server = await loop.create_server(Keeps, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    found += [server, await loop.create_connection(Keeps, *address), await loop.create_connection(Keeps, *address)]
    found.append(await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)))
    read_end, write_end = os.pipe()
    found.append(await loop.connect_read_pipe(asyncio.Protocol, open(read_end, "rb", 0)))
    found.append(await loop.connect_write_pipe(Keeps, open(write_end, "wb", 0)))
    a, b = socket.socketpair()
    a.setblocking(False)
    loop.add_reader(a, print)
    loop.add_writer(a, lambda: None)
    found += [a, b]
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.call_later(1000, print)
    loop.call_soon(int)
    found.append(loop.create_task(asyncio.sleep(1000)))
    found.append(loop.run_in_executor(None, int))
    await turns(3)
    return found
"""


def check(code: str, loop_name: str) -> None:
    done = run_child(OPEN_EVERYTHING + code + "\nprint('the end')\n", loop_name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("the end\n"), done.stderr
    for word in ("Assertion", "Fatal Python error", "Defect in velociloop"):
        assert word not in done.stderr, done.stderr


def test_need_3_interpreter_ends_with_everything_open(loop_name: str) -> None:
    check("loop = new_child_loop()\nfound = loop.run_until_complete(open_everything(loop))", loop_name)


def test_need_3_interpreter_ends_inside_a_run(loop_name: str) -> None:
    check(
        """
loop = new_child_loop()
async def main():
    found = await open_everything(loop)
    print("the end", flush=True)
    sys.exit(0)
loop.run_until_complete(main())
""",
        loop_name,
    )


def test_need_3_loop_closed_before_its_transports_go(loop_name: str) -> None:
    check(
        """
loop = new_child_loop()
found = loop.run_until_complete(open_everything(loop))
loop.close()
gc.collect()
del found
gc.collect()
""",
        loop_name,
    )


def test_need_3_transports_go_before_the_loop(loop_name: str) -> None:
    check(
        """
loop = new_child_loop()
found = loop.run_until_complete(open_everything(loop))
del found
gc.collect()
loop.run_until_complete(turns(5))
gc.collect()
loop.close()
del loop
gc.collect()
""",
        loop_name,
    )


def test_need_3_loop_and_transports_are_collected_together(loop_name: str) -> None:
    check(
        """
loop = new_child_loop()
found = loop.run_until_complete(open_everything(loop))
alive = weakref.ref(loop)
for sock in found:
    if isinstance(sock, socket.socket):
        sock.close()
del found, loop, sock
asyncio.set_event_loop(None)
gc.collect()
""",
        loop_name,
    )


@pytest.mark.parametrize("order", range(6))
def test_need_3_every_order_of_ends(loop_name: str, order: int) -> None:
    """Close, abort, drop and collect in an order of their own, turn by turn, a hundred times."""
    check(
        f"""
draw = random.Random({order})
# asyncio's pipes raise it after they have closed.
refusals = AttributeError if os.environ["TEST_LOOP"] == "asyncio" else ()
for _ in range(15):
    loop = new_child_loop()
    loop.set_exception_handler(lambda loop, context: None)
    found = loop.run_until_complete(open_everything(loop))
    draw.shuffle(found)
    while found:
        thing = found.pop()
        if isinstance(thing, tuple):
            thing = thing[0]
        act = draw.choice(["close", "abort", "both", "drop", "twice"])
        end = getattr(thing, "abort", None) or getattr(thing, "cancel", None) or thing.close
        close = getattr(thing, "close", end)
        with contextlib.suppress(refusals):
            if act in ("close", "both", "twice"):
                close()
            if act in ("abort", "both"):
                end()
            if act == "twice":
                close()
        if draw.random() < 0.3:
            gc.collect()
        if draw.random() < 0.5:
            loop.run_until_complete(turns(draw.randrange(4)))
        del thing, end, close
    if draw.random() < 0.5:
        loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    del loop
    gc.collect()
""",
        loop_name,
    )


def test_need_3_weak_references_and_resurrection(loop_name: str) -> None:
    """A transport that its protocol's finalizer brings back to life does nothing wild."""
    check(
        """
saved = []
class Rises(Keeps):
    def __del__(self):
        saved.append(self.transport)

async def main():
    near, far = socket.socketpair()
    near.setblocking(False)
    transport, protocol = await loop.create_connection(Rises, sock=near)
    transport.abort()
    del transport, protocol
    await turns(5)
    far.close()

loop = new_child_loop()
loop.run_until_complete(main())
gc.collect()
for transport in saved:
    repr(transport)
    transport.is_closing()
    transport.close()
    transport.get_extra_info("socket")
loop.close()
for transport in saved:
    repr(transport)
    transport.close()
""",
        loop_name,
    )
