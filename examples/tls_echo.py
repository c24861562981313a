"""A TLS echo server, and a first client of it in the same loop.

    pip install trustme                      (makes the certificate, anew at each start)
    python examples/tls_echo.py --port 8443

It prints the `openssl s_client` command with which to talk to it. Ctrl-C stops it.
"""

import argparse
import asyncio
import ssl
import sys
import tempfile

import velociloop

try:
    import trustme
except ImportError:
    sys.exit("this example makes its certificate with trustme: pip install trustme")


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass  # the client has gone
    except asyncio.CancelledError:
        writer.transport.abort()  # the server stops; close() would wait for the client's answer
    writer.close()


async def say(message: bytes, host: str, port: int, context: ssl.SSLContext) -> None:
    """Be a client: connect, check the certificate, send `message`, print the reply."""
    reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname="localhost")
    writer.write(message)
    reply = await reader.readline()
    cipher, protocol, _ = writer.get_extra_info("cipher")
    print(f"the first client received {reply!r} over {protocol} with {cipher}", flush=True)
    writer.close()
    await writer.wait_closed()


async def main(port: int) -> None:
    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)

    server = await asyncio.start_server(echo, "127.0.0.1", port, ssl=server_side)
    host, port = server.sockets[0].getsockname()
    with authority.cert_pem.tempfile(dir=tempfile.gettempdir()) as ca_file:
        print(f"TLS echo server listening on {host}:{port}")
        print(f"talk to it: openssl s_client -quiet -connect {host}:{port} -CAfile {ca_file}", flush=True)
        try:
            await say(b"hello\n", host, port, client_side)
            await asyncio.get_running_loop().create_future()  # for ever: Ctrl-C cancels main(), then each echo()
        finally:
            server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="TLS echo server")
    parser.add_argument("--port", type=int, default=8443, help="0: any free one")
    try:
        velociloop.run(main(parser.parse_args().port))
    except KeyboardInterrupt:
        print("stopped")
