"""TLS: servers and clients, `start_tls` on both sides, certificates that do not fit, and how it ends."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from support import LOCALHOST, Echo, HandlerCalls, Recorder, in_time, is_ours, pair, raw_connection, serving, turns

if TYPE_CHECKING:
    import trustme
    from certificates import Authority, Certificate

pytestmark = pytest.mark.debug_variant


def take_debug_report(handler_calls: HandlerCalls, error: type[BaseException]) -> None:
    """asyncio's server is silent about a handshake that failed, but in debug mode."""
    if asyncio.get_running_loop().get_debug():
        context = handler_calls.take()
        assert context["message"] == "Error on transport creation for incoming connection"
        assert isinstance(context["exception"], error)


async def test_echo(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async with pair(Recorder, Echo, server_tls=server_tls, client_tls=client_tls, server_hostname="localhost") as ends:
        for _ in range(3):
            ends.client.transport.write(b"hello")
        assert await ends.client.bytes_received(15) == b"hello" * 3
        ends.client.transport.close()
        assert await in_time(ends.client.lost) is None
        assert await in_time(ends.server.lost) is None
    # The close_notify of either side is the other's EOF.
    assert ends.client.events == ends.server.events == ["made", "data", "eof", "lost"]


@pytest.mark.parametrize("size", [1, 16384, 16385, 65536, 2_000_000])
async def test_echo_of_any_size(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, size: int) -> None:
    whole = bytes(i % 251 for i in range(size))
    async with pair(Recorder, Echo, server_tls=server_tls, client_tls=client_tls) as ends:
        ends.client.transport.write(whole)
        assert await ends.client.bytes_received(size) == whole


async def test_extra_info(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async with pair(server_tls=server_tls, client_tls=client_tls) as ends:
        client, server = ends.client.transport, ends.server.transport
        assert isinstance(client.get_extra_info("ssl_object"), ssl.SSLObject)
        assert client.get_extra_info("sslcontext") is client_tls
        assert server.get_extra_info("sslcontext") is server_tls
        assert client.get_extra_info("cipher") == server.get_extra_info("cipher")
        assert client.get_extra_info("cipher")[1].startswith("TLS")
        assert client.get_extra_info("compression") is None
        assert ("DNS", "localhost") in client.get_extra_info("peercert")["subjectAltName"]
        assert not server.get_extra_info("peercert")
        assert client.get_extra_info("peername") == server.get_extra_info("sockname")
        assert client.get_extra_info("sockname") == server.get_extra_info("peername")
        assert client.get_extra_info("socket").family == socket.AF_INET
        assert client.get_extra_info("no such name", 7) == 7


async def test_alpn(certificate: trustme.LeafCert | Certificate, authority: trustme.CA | Authority) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(server)
    server.set_alpn_protocols(["h2", "http/1.1"])
    client = ssl.create_default_context()
    authority.configure_trust(client)
    client.set_alpn_protocols(["http/1.1"])
    async with pair(server_tls=server, client_tls=client) as ends:
        assert ends.client.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"


async def test_client_certificates(
    authority: trustme.CA | Authority, certificate: trustme.LeafCert | Certificate
) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(server)
    server.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    authority.issue_cert("somebody").configure_cert(client)
    async with pair(server_tls=server, client_tls=client) as ends:
        assert ("DNS", "somebody") in ends.server.transport.get_extra_info("peercert")["subjectAltName"]


async def test_unknown_authority(server_tls: ssl.SSLContext, handler_calls: HandlerCalls) -> None:
    loop = asyncio.get_running_loop()
    async with serving(Recorder, ssl=server_tls) as (_, address):
        with pytest.raises(ssl.SSLCertVerificationError):
            await loop.create_connection(Recorder, *address, ssl=ssl.create_default_context())
        await turns(6)
    take_debug_report(handler_calls, ConnectionResetError)


async def test_wrong_host_name(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, handler_calls: HandlerCalls
) -> None:
    loop = asyncio.get_running_loop()
    async with serving(Recorder, ssl=server_tls) as (_, address):
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await loop.create_connection(Recorder, *address, ssl=client_tls, server_hostname="elsewhere")
        await turns(6)
    take_debug_report(handler_calls, ConnectionResetError)


async def test_a_host_name_is_needed(client_tls: ssl.SSLContext) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as sock, pytest.raises(ValueError, match="You must set server_hostname when using ssl"):
        await loop.create_connection(Recorder, sock=sock, ssl=client_tls)


async def test_the_client_gives_up_on_a_silent_server(client_tls: ssl.SSLContext) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server((LOCALHOST, 0)) as listener:
        with pytest.raises(ConnectionAbortedError, match=r"SSL handshake is taking longer than 0\.05 seconds"):
            await loop.create_connection(
                Recorder,
                *listener.getsockname(),
                ssl=client_tls,
                server_hostname="localhost",
                ssl_handshake_timeout=0.05,
            )
        await turns(6)


async def test_the_server_gives_up_on_a_silent_client(server_tls: ssl.SSLContext, handler_calls: HandlerCalls) -> None:
    made: list[Recorder] = []

    def accept() -> Recorder:
        made.append(Recorder())
        return made[-1]

    async with serving(accept, ssl=server_tls, ssl_handshake_timeout=0.05) as (_, address):
        with socket.create_connection(address) as client:
            assert await asyncio.to_thread(client.recv, 1) == b""
        await turns(6)
    assert all(protocol.events == [] for protocol in made)
    take_debug_report(handler_calls, ConnectionAbortedError)


async def test_a_client_that_does_not_speak_tls(server_tls: ssl.SSLContext, handler_calls: HandlerCalls) -> None:
    async with serving(Recorder, ssl=server_tls) as (_, address):
        with socket.create_connection(address) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")

            def to_the_end() -> None:
                while client.recv(1000):
                    pass

            await asyncio.to_thread(to_the_end)
        await turns(6)
    take_debug_report(handler_calls, ssl.SSLError)


async def test_a_server_that_closes_during_the_handshake(client_tls: ssl.SSLContext) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server((LOCALHOST, 0)) as listener:

        def accept_and_close() -> None:
            sock, _ = listener.accept()
            sock.recv(1000)
            sock.close()

        thread = threading.Thread(target=accept_and_close)
        thread.start()
        with pytest.raises(ConnectionResetError):
            await loop.create_connection(Recorder, *listener.getsockname(), ssl=client_tls, server_hostname="localhost")
        await asyncio.to_thread(thread.join)
        await turns(6)


@pytest.mark.parametrize("argument", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
async def test_timeouts_need_tls_and_sense(client_tls: ssl.SSLContext, argument: str) -> None:
    loop = asyncio.get_running_loop()
    options: Any = {argument: 1.0}
    with pytest.raises(ValueError, match=f"{argument} is only meaningful with ssl"):
        await loop.create_connection(Recorder, LOCALHOST, 1, **options)
    with pytest.raises(ValueError, match=f"{argument} is only meaningful with ssl"):
        await loop.create_server(Recorder, LOCALHOST, 0, **options)


async def test_close_sends_what_was_written(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    whole = bytes(2_000_000)
    async with pair(server_tls=server_tls, client_tls=client_tls) as ends:
        ends.client.transport.write(whole)
        ends.client.transport.close()
        assert ends.client.transport.is_closing()
        assert await ends.server.bytes_received(len(whole)) == whole
        assert await in_time(ends.client.lost) is None
        assert await in_time(ends.server.lost) is None


async def test_need_18_abort_ends_at_once(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async with pair(server_tls=server_tls, client_tls=client_tls) as ends:
        ends.client.transport.write(bytes(100))
        ends.client.transport.abort()
        assert await in_time(ends.client.lost) is None
        await in_time(ends.server.lost)


async def test_need_18_a_peer_that_never_answers_close_notify(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """`ssl_shutdown_timeout` bounds the wait; then the connection is aborted."""
    loop = asyncio.get_running_loop()
    release = threading.Event()
    with socket.create_server((LOCALHOST, 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with server_tls.wrap_socket(sock, server_side=True):
                release.wait()

        thread = threading.Thread(target=serve)
        thread.start()
        transport, protocol = await loop.create_connection(
            Recorder, *listener.getsockname(), ssl=client_tls, server_hostname="localhost", ssl_shutdown_timeout=0.05
        )
        transport.close()
        assert isinstance(await in_time(protocol.lost), (TimeoutError, type(None)))
        release.set()
        await asyncio.to_thread(thread.join)
        await turns(6)


async def test_the_peer_goes_without_close_notify(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async with pair(server_tls=server_tls, client_tls=client_tls) as ends:
        ends.client.transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        await in_time(ends.server.lost)
        await in_time(ends.client.lost)


async def test_write_eof_is_not_possible(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async with pair(server_tls=server_tls, client_tls=client_tls) as ends:
        assert not ends.client.transport.can_write_eof()
        with pytest.raises(NotImplementedError):
            ends.client.transport.write_eof()


async def test_pausing_loses_nothing(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    whole = bytes(i % 253 for i in range(600_000))
    loop = asyncio.get_running_loop()

    class Pausing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()
            loop.call_soon(self.transport.resume_reading)

    async with pair(Recorder, Pausing, server_tls=server_tls, client_tls=client_tls) as ends:
        ends.client.transport.write(whole)
        assert await ends.server.bytes_received(len(whole)) == whole


async def test_flow_control(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    """On a Unix socket, whose kernel buffers are small and of one size."""
    async with pair(server_tls=server_tls, client_tls=client_tls, unix=True) as ends:
        ends.server.transport.pause_reading()
        transport = ends.client.transport
        transport.set_write_buffer_limits(high=100_000)
        assert transport.get_write_buffer_limits() == (25_000, 100_000)
        for _ in range(50):
            transport.write(bytes(100_000))
        # No turn in between: once the lower transport has room again, it takes all of the layer's bytes at once.
        assert ends.client.events == ["made", "pause"]
        assert transport.get_write_buffer_size() > 0
        ends.server.transport.resume_reading()
        await ends.server.bytes_received(5_000_000)
        await in_time(ends.client.resumed.wait())
        assert ends.client.events == ["made", "pause", "resume"]


async def test_set_protocol(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async with pair(server_tls=server_tls, client_tls=client_tls) as ends:
        second = Recorder()
        second.transport = ends.server.transport
        ends.server.transport.set_protocol(second)
        assert ends.server.transport.get_protocol() is second
        ends.client.transport.write(b"to the second")
        assert await second.bytes_received(13) == b"to the second"


@pytest.mark.parametrize("upgrader", ["client", "server"])
async def test_start_tls(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, upgrader: str) -> None:
    """STARTTLS over a connection in use; `upgrader` starts it after the other side has said yes in clear text."""
    loop = asyncio.get_running_loop()
    async with pair() as ends:
        ends.client.transport.write(b"STARTTLS\n")
        await ends.server.bytes_received(9)
        ends.server.transport.write(b"OK\n")
        await ends.client.bytes_received(3)

        async def client() -> Any:
            protocol = Recorder()
            transport = await loop.start_tls(ends.client.transport, protocol, client_tls, server_hostname="localhost")
            return protocol, transport

        async def server() -> Any:
            protocol = Recorder()
            transport = await loop.start_tls(ends.server.transport, protocol, server_tls, server_side=True)
            return protocol, transport

        first, second = (client, server) if upgrader == "client" else (server, client)
        one = asyncio.create_task(first())
        await turns(2)
        other = await in_time(asyncio.create_task(second()))
        near = await in_time(one)
        (client_protocol, client_side), (server_protocol, server_side) = (
            (near, other) if upgrader == "client" else (other, near)
        )
        client_side.write(b"secret question")
        assert await server_protocol.bytes_received(15) == b"secret question"
        server_side.write(b"secret answer")
        assert await client_protocol.bytes_received(13) == b"secret answer"
        assert client_side.get_extra_info("ssl_object").version().startswith("TLS")
        assert client_side.get_extra_info("peername") == ends.client.transport.get_extra_info("peername")
        client_side.close()
        assert await in_time(server_protocol.lost) is None
        assert await in_time(client_protocol.lost) is None


async def test_start_tls_that_fails(server_tls: ssl.SSLContext) -> None:
    loop = asyncio.get_running_loop()
    async with pair() as ends:
        server = asyncio.create_task(loop.start_tls(ends.server.transport, Recorder(), server_tls, server_side=True))
        with pytest.raises(ssl.SSLCertVerificationError):
            await in_time(
                loop.start_tls(
                    ends.client.transport, Recorder(), ssl.create_default_context(), server_hostname="localhost"
                )
            )
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await in_time(server)
        await turns(6)


async def test_start_tls_times_out(client_tls: ssl.SSLContext) -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder) as (transport, _, _peer):
        with pytest.raises(ConnectionAbortedError, match="SSL handshake is taking longer"):
            await loop.start_tls(
                transport, Recorder(), client_tls, server_hostname="localhost", ssl_handshake_timeout=0.05
            )
        await turns(6)


async def test_need_18_start_tls_on_a_connection_that_ends(client_tls: ssl.SSLContext) -> None:
    """It never hangs: the peer's going is the handshake's failure."""
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder) as (transport, _, peer):
        task = asyncio.create_task(loop.start_tls(transport, Recorder(), client_tls, server_hostname="localhost"))
        await turns(4)
        peer.sock.close()
        with pytest.raises(ConnectionError):
            await in_time(task)
        await turns(6)


async def test_start_tls_argument_errors(client_tls: ssl.SSLContext) -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder) as (transport, protocol, _):
        with pytest.raises(TypeError, match=r"sslcontext is expected to be an instance of ssl\.SSLContext"):
            await loop.start_tls(transport, protocol, None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"is not supported by start_tls\(\)"):
            await loop.start_tls(asyncio.Transport(), protocol, client_tls)


async def test_streams_start_tls(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"OK\n")
        await writer.drain()
        await writer.start_tls(server_tls)
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, LOCALHOST, 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"STARTTLS\n")
        assert await in_time(reader.readline()) == b"OK\n"
        await writer.start_tls(client_tls, server_hostname="localhost")
        writer.write(b"quiet\n")
        assert await in_time(reader.readline()) == b"QUIET\n"
        writer.close()
        await writer.wait_closed()
        await turns(6)


@pytest.mark.parametrize("method", ["connection_made", "data_received"])
async def test_need_23_exceptions_over_tls(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, handler_calls: HandlerCalls, method: str
) -> None:
    class Failing(Recorder):
        pass

    original: Callable[..., Any] = getattr(Recorder, method)

    def fail(self: Failing, *args: Any) -> None:
        original(self, *args)
        raise LookupError("on purpose")

    setattr(Failing, method, fail)
    async with pair(Recorder, Failing, server_tls=server_tls, client_tls=client_tls) as ends:
        ends.client.transport.write(b"x")
        if method == "data_received" or is_ours():
            await in_time(ends.client.lost)
        else:
            await turns(10)
        assert isinstance(handler_calls.take()["exception"], LookupError)
        if method == "connection_made":
            take_debug_report(handler_calls, LookupError)


async def test_several_writes_are_one_packet_of_records(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async with pair(server_tls=server_tls, client_tls=client_tls) as ends:
        ends.client.transport.writelines([b"one", b"two", bytearray(b"three"), memoryview(b"four")])
        assert await ends.server.bytes_received(15) == b"onetwothreefour"


async def test_need_12_write_after_close(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async with pair(server_tls=server_tls, client_tls=client_tls) as ends:
        ends.client.transport.close()
        ends.client.transport.write(b"too late")
        await in_time(ends.client.lost)
        ends.client.transport.write(b"too late")
        await in_time(ends.server.lost)
        assert not ends.server.received
