"""H6: descriptors closed under the loop, by whomever. The process lives on, and the loop with it.

libuv aborts when it watches such a descriptor, so each of these runs in a child, whose exit status tells.
"""

from __future__ import annotations

import sys
import textwrap

import pytest
from support import run_child

PRELUDE = """
import contextlib

def look_alive(loop):
    # Whatever happened before, the loop still serves others.
    async def exchange():
        async with pair(Recorder, Echo) as ends:
            ends.client.transport.write(b"alive")
            assert await ends.client.bytes_received(5) == b"alive"

    loop.run_until_complete(exchange())

loop = new_child_loop()
loop.set_exception_handler(lambda loop, context: None)
"""


def check(scene: str, loop_name: str) -> None:
    """Run `scene`, then a TCP echo on the same loop; the child must end normally."""
    # asyncio's stale registration breaks the next user of the descriptor's number: it need only survive.
    after = "look_alive(loop)\nloop.close()\n" if loop_name == "velociloop" else ""
    code = f"{PRELUDE}{textwrap.dedent(scene)}\n{after}print('alive')\n"
    done = run_child(code, loop_name, "-W", "ignore::ResourceWarning")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("alive\n")


def test_need_1_closing_a_watched_descriptor(loop_name: str) -> None:
    check(
        """
        async def main():
            near, far = socket.socketpair()
            near.setblocking(False)
            seen = []
            asyncio.get_running_loop().add_reader(near, seen.append, 1)
            await turns()
            os.close(near.detach())
            far.close()
            await turns(10)
            await asyncio.sleep(0.01)

        loop.run_until_complete(main())
        """,
        loop_name,
    )


def test_need_1_closing_and_reusing_a_watched_descriptor(loop_name: str) -> None:
    """The number comes back for another file: its events are the new file's, once it is registered."""
    check(
        """
        async def main():
            loop = asyncio.get_running_loop()
            one, two = socket.socketpair()
            fd = one.fileno()
            loop.add_reader(fd, lambda: None)
            await turns()
            one.close()
            two.close()
            three, four = socket.socketpair()
            assert three.fileno() == fd
            three.setblocking(False)
            got = loop.create_future()
            loop.remove_reader(fd)
            loop.add_reader(fd, lambda: got.done() or got.set_result(three.recv(10)))
            four.send(b"new")
            assert await in_time(got) == b"new"
            loop.remove_reader(fd)
            three.close()
            four.close()

        loop.run_until_complete(main())
        """,
        loop_name,
    )


def test_remove_reader_after_close(loop_name: str) -> None:
    check(
        """
        async def main():
            loop = asyncio.get_running_loop()
            near, far = socket.socketpair()
            fd = near.fileno()
            loop.add_reader(fd, print)
            await turns()
            near.close()
            assert loop.remove_reader(fd) is True
            assert loop.remove_reader(fd) is False
            assert loop.remove_writer(fd) is False
            await turns()
            far.close()

        loop.run_until_complete(main())
        """,
        loop_name,
    )


def test_add_reader_on_a_closed_descriptor(loop_name: str) -> None:
    check(
        """
        near, far = socket.socketpair()
        fd = near.fileno()
        near.close()
        for add in loop.add_reader, loop.add_writer:
            for what in (fd, near, -1):
                try:
                    add(what, print)
                except (OSError, ValueError) as error:
                    print(type(error).__name__)
                else:
                    raise AssertionError("accepted")
        far.close()
        """,
        loop_name,
    )


def test_need_2_add_reader_on_a_regular_file(loop_name: str) -> None:
    """epoll refuses it with EPERM: PermissionError from add_reader, and nothing is left behind."""
    check(
        """
        with open(__import__("support").__file__) as file:
            try:
                loop.add_reader(file, print)
            except PermissionError:
                pass
            else:
                raise AssertionError("accepted")
            assert loop.remove_reader(file) is False
        """,
        loop_name,
    )


@pytest.mark.ours("asyncio survives, but its stale registration breaks whoever gets the number next")
@pytest.mark.parametrize("how", ["os.close(fd)", "os.dup2(devnull, fd)", "os.dup2(other.fileno(), fd)"])
@pytest.mark.parametrize("when", ["reading", "paused", "fresh", "writing", "closing"])
def test_H6_a_transports_descriptor_is_closed_by_somebody_else(loop_name: str, how: str, when: str) -> None:
    check(
        f"""
        async def main():
            loop = asyncio.get_running_loop()
            devnull = os.open(os.devnull, os.O_RDWR)
            other, _ = socket.socketpair()
            near, far = socket.socketpair()
            near.setblocking(False)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            transport, protocol = await loop.create_connection(Recorder, sock=near)
            when = {when!r}
            if when == "reading":
                await turns(5)
            elif when == "paused":
                await turns(5)
                transport.pause_reading()
                await turns(5)
            elif when == "writing":
                transport.write(bytes(1000000))
                await turns(5)
            elif when == "closing":
                transport.write(bytes(1000000))
                transport.close()
            fd = transport.get_extra_info("socket").fileno()
            {how}
            far.send(b"hello")
            await turns(5)
            if when == "paused":
                transport.resume_reading()
            await turns(5)
            transport.write(b"x")
            far.close()
            await asyncio.sleep(0.01)
            transport.abort()
            await turns(10)
            if {how!r} == "os.close(fd)":
                near.detach()

        with contextlib.suppress(OSError):
            loop.run_until_complete(main())
        """,
        loop_name,
    )


@pytest.mark.ours("asyncio transports share the user's socket object by design; the number is ours to protect")
def test_H6_a_wrapped_descriptor_closed_between_accept_and_first_read(loop_name: str) -> None:
    """connection_made closes the descriptor of the transport that it was just given."""
    check(
        """
        class Rude(Recorder):
            def connection_made(self, transport):
                super().connection_made(transport)
                os.close(transport.get_extra_info("socket").fileno())

        async def main():
            loop = asyncio.get_running_loop()
            made = []
            server = await loop.create_server(lambda: made.append(Rude()) or made[-1], LOCALHOST, 0)
            client = socket.create_connection(server.sockets[0].getsockname())
            client.send(b"x")
            await until(lambda: made and made[0].made.done())
            await turns(10)
            made[0].transport.abort()
            await turns(10)
            client.close()
            server.close()
            await turns()

        loop.run_until_complete(main())
        """,
        loop_name,
    )


@pytest.mark.parametrize("when", ["before", "after"])
def test_H6_the_standard_streams_are_closed(loop_name: str, when: str) -> None:
    """libuv never closes 0 to 2, and asserts: whatever we get lies above, `when` the loop is made and later."""
    done = run_child(
        f"""
        loop = new_child_loop() if {when!r} == "after" else None
        for fd in range(3):
            os.close(fd)
        loop = loop or new_child_loop()

        async def main():
            async with pair(Recorder, Echo) as ends:
                ends.client.transport.write(b"x")
                await ends.client.bytes_received(1)
                assert ends.client.transport.get_extra_info("socket").fileno() > (2 if is_ours() else -1)
                assert ends.server.transport.get_extra_info("socket").fileno() > (2 if is_ours() else -1)

        loop.run_until_complete(main())
        loop.close()
        os._exit(42)
        """,
        loop_name,
    )
    assert done.returncode == 42

@pytest.mark.ours("asyncio's own descriptors may become standard output")
@pytest.mark.parametrize("forked", [False, True], ids=["made", "adopted"])
def test_H6_a_loop_made_without_standard_streams_takes_none_of_their_numbers(loop_name: str, forked: bool) -> None:
    done = run_child(
        f"""
        report = os.fdopen(os.dup2(os.dup(1), 50), "w")

        def check():
            os.close(0)
            os.close(1)
            os.close(2)
            loop = inherited if inherited is not None else new_child_loop()
            loop.run_until_complete(asyncio.sleep(0.001))
            free = []
            for number in range(3):
                try:
                    os.fstat(number)
                except OSError:
                    free.append(number)
            loop.close()
            print(free, file=report, flush=True)
            os._exit(0)

        if {forked}:
            inherited = new_child_loop()
            inherited.run_until_complete(asyncio.sleep(0))
            child = os.fork()
            if child == 0:
                check()
            inherited.close()
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        inherited = None
        check()
        """,
        loop_name,
    )
    assert (done.returncode, done.stdout) == (0, "[0, 1, 2]\n"), done.stderr


@pytest.mark.ours("asyncio's own epoll descriptor is no part of this rule")
@pytest.mark.skipif(sys.platform != "linux", reason="looks for epoll instances in /proc")
@pytest.mark.parametrize("number", [0, 1])
def test_H6_one_epoll_instance_is_closed(loop_name: str, number: int) -> None:
    """libuv's, or the one that user descriptors are in: an error ends the run, or it goes on; it never spins."""
    done = run_child(
        f"""
        loop = new_child_loop()
        loop.run_until_complete(asyncio.sleep(0))
        instances = sorted(fd for fd, target in open_descriptors().items() if "eventpoll" in target)
        os.close(instances[{number}])
        start = time.process_time()
        threading.Timer(HANG_S / 2, os._exit, (7,)).start()
        try:
            loop.run_until_complete(asyncio.sleep(0.1))
        except OSError as error:
            print("ended by", type(error).__name__)
        else:
            print("went on")
        print(time.process_time() - start < 0.09)
        sys.stdout.flush()
        os._exit(0)
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("True\n"), done.stdout


@pytest.mark.ours("asyncio's own epoll descriptor is no part of this rule")
def test_H6_libuvs_own_descriptor_is_closed(loop_name: str) -> None:
    """Programs that close every descriptor (daemonizers do) get an error, not a loop that spins for ever."""
    done = run_child(
        """
        loop = new_child_loop()
        os.closerange(3, 100)
        try:
            loop.run_until_complete(asyncio.sleep(0.01))
        except OSError as error:
            print("OSError")
        else:
            print("it ran")
        os._exit(0)
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "OSError\n"


def test_add_reader_is_refused_for_a_transports_descriptor(loop_name: str) -> None:
    check(
        """
        async def main():
            loop = asyncio.get_running_loop()
            async with pair() as ends:
                fd = ends.client.transport.get_extra_info("socket").fileno()
                for call in loop.add_reader, loop.add_writer:
                    try:
                        call(fd, print)
                    except RuntimeError as error:
                        assert "is used by transport" in str(error)
                    else:
                        raise AssertionError("accepted")
                for call in loop.remove_reader, loop.remove_writer:
                    try:
                        call(fd)
                    except RuntimeError as error:
                        assert "is used by transport" in str(error)
                    else:
                        raise AssertionError("accepted")

        loop.run_until_complete(main())
        """,
        loop_name,
    )


def test_readers_and_writers(loop_name: str) -> None:
    """What `add_reader` and `add_writer` are for: both directions of one descriptor, replaced and removed."""
    check(
        """
        async def main():
            loop = asyncio.get_running_loop()
            near, far = socket.socketpair()
            near.setblocking(False)
            events = []
            loop.add_writer(near, events.append, "first writer")
            loop.add_writer(near, events.append, "writer")
            loop.add_reader(near, lambda: events.append(near.recv(10)))
            await until(lambda: "writer" in events)
            assert loop.remove_writer(near) is True
            assert loop.remove_writer(near) is False
            events.clear()
            far.send(b"data")
            await until(lambda: events)
            assert events == [b"data"]
            await turns(5)
            assert events == [b"data"]
            far.close()
            await until(lambda: len(events) > 3)
            assert events[-1] == b""
            assert loop.remove_reader(near) is True
            near.close()

        loop.run_until_complete(main())
        """,
        loop_name,
    )
