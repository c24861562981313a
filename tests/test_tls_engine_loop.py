"""The TLS engine on real connections: its cork, which engine serves, cancelled connects, what comes behind STARTTLS."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import weakref
from asyncio import sslproto
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import HANG_S, LOCALHOST, Echo, HandlerCalls, Recorder, in_time, is_ours, pair, serving, turns, until
from tls_support import Peer, Wire

from velociloop._accelerator import speedups

if TYPE_CHECKING:
    import trustme
    from certificates import Authority

pytestmark = pytest.mark.debug_variant


def engine_of(transport: Any) -> type:
    return type(transport._ssl_protocol)


# The cork


@pytest.mark.ours("corking is velociloop's")
async def test_H5_writes_of_one_callback_are_one_record(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    debug = asyncio.get_running_loop().get_debug()
    w = Wire(server_tls, Peer(client_tls), server_side=True).connect()
    await turns(1)
    for piece in (b"one", b"two", b"three"):
        w.transport.write(piece)
    if debug:  # nothing is corked there
        assert len(w.below.pieces) == 3
    else:
        assert len(w.below.pieces) == 1, "the first leaves at once"
        await turns(1)
        assert len(w.below.pieces) == 2
        for piece in (b"four", b"five"):
            w.transport.write(piece)
        assert len(w.below.pieces) == 2, "now the cork is in"
        assert w.transport.get_write_buffer_size() == 0, "asking makes it leave"
        assert len(w.below.pieces) == 3
        w.transport.write(b"six")
        w.transport.abort()
        assert len(w.below.pieces) == 4, "what the cork kept could have been sent long ago"
    w.peer.step(w.below.take())
    assert bytes(w.peer.received) == (b"onetwothree" if debug else b"onetwothreefourfivesix")
    await w.end()


@pytest.mark.ours("corking is velociloop's")
async def test_H5_the_cork_comes_out_again(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    from velociloop.transports.sending import CALM_CALLBACKS

    w = Wire(server_tls, Peer(client_tls), server_side=True).connect()
    await turns(1)
    if asyncio.get_running_loop().get_debug():
        await w.end()
        return
    w.transport.write(b"a")
    w.transport.write(b"b")
    for _ in range(CALM_CALLBACKS):
        await turns(1)
        w.below.take()
        w.transport.write(b"c")
        assert w.below.pieces == []
    await turns(1)
    w.below.take()
    w.transport.write(b"d")
    assert len(w.below.pieces) == 1
    await w.end()


@pytest.mark.ours("corking is velociloop's")
async def test_H5_not_past_the_mark(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    w = Wire(server_tls, Peer(client_tls), server_side=True).connect()
    await turns(1)
    w.transport.set_write_buffer_limits(high=1000)
    w.layer.pause_writing()
    w.transport.write(b"x" * 500)
    w.transport.write(b"x" * 600)
    assert w.protocol.events == ["made", "pause"]
    await w.end()


# Which engine


async def test_the_engine(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async with pair(server_tls=server_tls, client_tls=client_tls) as ends:
        for end in (ends.client, ends.server):
            module = engine_of(end.transport).__module__
            assert module == ("velociloop.transports.tls" if is_ours() else "asyncio.sslproto")
            assert isinstance(end.transport, asyncio.Transport)


@pytest.mark.ours("a variable of velociloop's")
async def test_asyncios_engine_on_request(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VELOCILOOP_TLS", "asyncio")
    async with pair(Recorder, Echo, server_tls=server_tls, client_tls=client_tls) as ends:
        assert engine_of(ends.client.transport) is engine_of(ends.server.transport) is sslproto.SSLProtocol
        ends.client.transport.write(b"hello")
        assert await ends.client.bytes_received(5) == b"hello"
        monkeypatch.setenv("VELOCILOOP_TLS", "openssl")
        with pytest.raises(ValueError, match="VELOCILOOP_TLS must be one of velociloop, asyncio, not 'openssl'"):
            await asyncio.get_running_loop().start_tls(ends.client.transport, ends.client, client_tls)


async def test_a_replaced_SSLProtocol_is_obeyed(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Replaced(sslproto.SSLProtocol):
        pass

    monkeypatch.setattr(sslproto, "SSLProtocol", Replaced)
    async with pair(server_tls=server_tls, client_tls=client_tls) as ends:
        assert engine_of(ends.client.transport) is engine_of(ends.server.transport) is Replaced


# start_tls, cancelled and otherwise


async def test_a_cancelled_connect_leaves_nothing(client_tls: ssl.SSLContext) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server((LOCALHOST, 0)) as listener:
        task = asyncio.ensure_future(
            loop.create_connection(Recorder, *listener.getsockname(), ssl=client_tls, server_hostname="localhost")
        )
        peer, _ = await asyncio.to_thread(listener.accept)
        with peer:
            assert await asyncio.to_thread(peer.recv, 1)  # the client's hello
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await turns(4)


async def test_a_cancelled_start_tls_closes(client_tls: ssl.SSLContext) -> None:
    loop = asyncio.get_running_loop()
    async with pair() as ends:
        task = asyncio.ensure_future(
            loop.start_tls(ends.client.transport, Recorder(), client_tls, server_hostname="localhost")
        )
        await ends.server.bytes_received(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await in_time(ends.server.lost)
        assert ends.client.transport.is_closing()


async def test_start_tls_knows_its_arguments(client_tls: ssl.SSLContext) -> None:
    loop = asyncio.get_running_loop()
    async with pair() as ends:
        with pytest.raises(TypeError, match="server_name"):
            await loop.start_tls(ends.client.transport, ends.client, client_tls, server_name="x")  # type: ignore[call-arg]


@pytest.mark.ours("until 3.13's last releases asyncio leaves it in the StreamReader, and the handshake hangs")
async def test_a_hello_right_behind_STARTTLS(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    told: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        await writer.start_tls(server_tls)
        told.set_result(await reader.readline())
        writer.close()

    server = await asyncio.start_server(handle, LOCALHOST, 0)
    async with server:
        peer = Peer(client_tls)
        reader: asyncio.StreamReader
        writer: Any
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(b"STARTTLS\n" + peer.step())
        while not peer.done:
            writer.write(peer.step(await in_time(reader.read(65536))))
        writer.write(peer.write(b"quiet\n"))
        assert await in_time(told) == b"quiet\n"
        writer.close()
        await turns(4)


async def test_tls_in_tls(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    loop = asyncio.get_running_loop()
    async with pair(server_tls=server_tls, client_tls=client_tls) as ends:
        inner_client, inner_server = Recorder(), Recorder()
        client: Any
        server: Any
        client, server = await in_time(
            asyncio.gather(
                loop.start_tls(ends.client.transport, inner_client, client_tls, server_hostname="localhost"),
                loop.start_tls(ends.server.transport, inner_server, server_tls, server_side=True),
            )
        )
        client.write(b"x" * 200_000)
        assert await inner_server.bytes_received(200_000) == b"x" * 200_000
        server.write(b"inside")
        assert await inner_client.bytes_received(6) == b"inside"
        client.close()
        await in_time(inner_server.lost)
        await in_time(inner_client.lost)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl tool is not here")
@pytest.mark.parametrize("version", ["-tls1_3", "-tls1_2"], ids=["key-update", "renegotiation"])
async def test_new_keys_in_between(server_tls: ssl.SSLContext, version: str) -> None:
    """A client of OpenSSL's that asks for them: a key update goes on, a renegotiation is refused by the context."""
    made: list[Echo] = []

    def accept() -> Echo:
        made.append(Echo())
        return made[-1]

    async with serving(accept, ssl=server_tls) as (_, address):
        command = ["openssl", "s_client", "-connect", f"{address[0]}:{address[1]}", version]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as child:
            killer = threading.Timer(HANG_S, child.kill)
            killer.start()
            stdin, stdout = child.stdin, child.stdout
            assert stdin is not None and stdout is not None

            def say(what: bytes, answer: bytes) -> None:
                stdin.write(what)
                for line in stdout:
                    if answer in line:
                        return
                raise AssertionError(f"the client ended, and did not say {answer!r}")

            await asyncio.to_thread(say, b"before\n", b"before")
            if version == "-tls1_3":
                await asyncio.to_thread(say, b"K\n", b"KEYUPDATE")
                await asyncio.to_thread(say, b"behind\n", b"behind")
                assert made[0].received == b"before\nbehind\n"
            else:
                await asyncio.to_thread(say, b"R\n", b"no renegotiation")
                assert made[0].received == b"before\n"
            child.kill()
            killer.cancel()
            killer.join()
        await in_time(made[0].lost)
        await turns(4)


@contextlib.contextmanager
def openssl_server(folder: Path) -> Iterator[tuple[Callable[[bytes, bytes], str], ssl.SSLContext]]:
    """A TLS 1.2 server of OpenSSL's: what types a line and reads on to an answer, and a context that trusts it."""
    key, chain = str(folder / "key.pem"), str(folder / "chain.pem")
    command = ["openssl", "req", "-x509", "-days", "2", "-nodes", "-newkey", "ec", "-pkeyopt"]
    command += ["ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost", "-keyout", key, "-out", chain]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(cafile=chain)
    context.check_hostname = False
    command = ["openssl", "s_server", "-accept", f"{LOCALHOST}:0", "-tls1_2", "-cert", chain, "-key", key]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as child:
        killer = threading.Timer(HANG_S, child.kill)
        killer.start()
        stdin, stdout = child.stdin, child.stdout
        assert stdin is not None and stdout is not None

        def say(what: bytes, answer: bytes) -> str:
            stdin.write(what)
            for line in stdout:
                if answer in line:
                    return str(line, "ascii")
            raise AssertionError(f"the server ended, and did not say {answer!r}")

        try:
            yield say, context
        finally:
            child.kill()
            killer.cancel()
            killer.join()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl tool is not here")
@pytest.mark.parametrize("command", [b"r\n", b"R\n"], ids=["renegotiation", "with-certificate-asked-for"])
async def test_a_renegotiation_that_the_server_starts(tmp_path: Path, command: bytes) -> None:
    """The client answers it within its reading, and what is sent before and behind it arrives whole."""
    loop = asyncio.get_running_loop()
    with openssl_server(tmp_path) as (say, context):
        port = int((await asyncio.to_thread(say, b"", b"ACCEPT")).rpartition(":")[2])
        transport, client = await in_time(loop.create_connection(Recorder, LOCALHOST, port, ssl=context))
        transport.write(b"before\n")
        await asyncio.to_thread(say, b"", b"before")
        for number in range(3):
            await asyncio.to_thread(say, command, b"SSL_do_handshake -> 1")
            await asyncio.to_thread(say, b"from the server\n", b"")
            assert await client.bytes_received(16 * (number + 1)) == b"from the server\n" * (number + 1)
            transport.write(b"number %d\n" % number)
            await asyncio.to_thread(say, b"", b"number %d" % number)
        transport.close()
        assert await in_time(client.lost) is None
    await turns(4)


# Certificates


async def test_the_hostname_of_an_address(authority: trustme.CA | Authority, client_tls: ssl.SSLContext) -> None:
    """127.0.0.1 stands in the certificate; ::1 does not."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    for name, good in (("127.0.0.1", True), ("127.0.0.2", False)):
        w = Wire(client_tls, Peer(server, server_side=True), server_hostname=name)
        w.exchange()
        assert (w.waiter.exception() is None) is good
        await w.end()


async def test_a_failed_handshake_disturbs_no_other_connection(
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    authority: trustme.CA | Authority,
    handler_calls: HandlerCalls,
) -> None:
    """PyPy's ssl leaves its error to whatever calls OpenSSL next."""
    loop = asyncio.get_running_loop()
    if not is_ours(loop) and sys.implementation.name == "pypy":
        pytest.skip("there, with asyncio's layer, it does")
    strict = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    strict.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(strict)
    authority.issue_cert("localhost").configure_cert(strict)
    async with serving(Echo, ssl=server_tls) as (_, good), serving(Recorder, ssl=strict) as (_, refusing):
        reader, writer = await asyncio.open_connection(*good, ssl=client_tls, server_hostname="localhost")
        for number in range(5):
            # With TLS 1.3 a client hears of the refusal when it reads.
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                other, _ = await asyncio.open_connection(*refusing, ssl=client_tls, server_hostname="localhost")
                assert await in_time(other.read(1)) == b""
            writer.write(b"%d" % number)
            assert await in_time(reader.read(10)) == b"%d" % number
        writer.close()
        await writer.wait_closed()
    handler_calls.clear()  # in debug mode, refused clients are reported


@pytest.mark.skipif(not hasattr(gc, "freeze"), reason="this collector counts no references")
@pytest.mark.ours("asyncio's leave cycles before 3.14.10")
@pytest.mark.parametrize("entry", ["create_connection", "start_tls"])
async def test_a_refused_certificate_leaves_no_cycle(
    entry: str, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a failed handshake leaves is freed at once, not when the collector comes."""
    from velociloop.transports.tls import TlsProtocol

    loop = asyncio.get_running_loop()
    if loop.get_debug():
        pytest.skip("the log keeps the exception")
    if entry == "create_connection" and speedups is None and sys.version_info < (3, 14, 10):
        # Its waiter has the exception, whose traceback has the coroutine's frame, which has the waiter (gh-159049); by
        # the frames below the traceback's last, the transport's is in that cycle.  In C there is no such frame.
        pytest.skip("asyncio's create_connection leaves a cycle")
    transports: list[weakref.ref[Any]] = []
    connection_made = TlsProtocol.connection_made

    def remembering(layer: TlsProtocol, transport: Any) -> None:
        transports.append(weakref.ref(transport))
        connection_made(layer, transport)

    async def connect(address: Any) -> None:
        strict = ssl.create_default_context()  # which knows nothing of the test's authority
        with pytest.raises(ssl.SSLCertVerificationError):
            if entry == "create_connection":
                await loop.create_connection(asyncio.Protocol, *address, ssl=strict, server_hostname="localhost")
            else:
                transport, protocol = await loop.create_connection(asyncio.Protocol, *address)
                await loop.start_tls(transport, protocol, strict, server_hostname="localhost")

    async with serving(Recorder, ssl=server_tls) as (_, address):
        monkeypatch.setattr(TlsProtocol, "connection_made", remembering)
        gc.disable()
        try:
            await connect(address)
            await until(lambda: len(transports) == 2 and not any(transport() for transport in transports))
        finally:
            gc.enable()
