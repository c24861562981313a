"""Each row of the needs that this part of velociloop serves has a test named after it: ``test_need_<row>_...``.

Rows are those of the project's list of what users of other event loops suffer from; here they are in brief.
"""

from __future__ import annotations

import re
from pathlib import Path

NEEDS = {
    1: "closing a descriptor that add_reader watches does not kill the process",
    2: "a regular file is an exception, not an abort",
    3: "no crash where loops and transports end",
    4: "no double close of a pipe's descriptor",
    6: "nest_asyncio, tools that read _ready and _scheduled",
    7: "loop.sendfile, sock_sendfile",
    8: "sock_recvfrom, sock_recvfrom_into, sock_sendto",
    9: "create_task keywords, eager task factories",
    10: "Server.close_clients, abort_clients, wait_closed, serve_forever",
    11: "Happy Eyeballs, all_errors, keep_alive",
    12: "write after close",
    13: "/dev/stdin, real pipes for a child",
    14: "all Popen keywords",
    15: "get_extra_info('socket'), get_extra_info('pipe'), ...",
    16: "exact timers",
    17: "call_soon_threadsafe from threads, signal handlers and finalizers",
    18: "TLS ends: no linger, no hang",
    19: "isinstance of Transport, Handle, TransportSocket",
    20: "zones of IPv6 addresses",
    21: "debug mode in asyncio's words",
    22: "interrupts from any callback",
    23: "exceptions of a protocol reach the handler",
    24: "several writes in one callback leave as one packet",
    25: "handlers for SIGCHLD",
    26: "writing to a child that has exited",
    27: "transports' methods can be patched",
    28: "a replaced socket.getaddrinfo, a patched loop.time()",
    29: "forked and spawned children",
    30: "loop_factory first, policies lazily",
    31: "the frameworks' hooks",
    33: "a single write leaves before a blocking call",
    34: "a patched loop.time(), Handles from call_soon",
}


def test_every_need_has_its_test() -> None:
    tests = Path(__file__).parent.parent
    found = set()
    for path in tests.rglob("test_*.py"):
        for rows in re.findall(r"def test_need_(\d+(?:_\d+)*)_", path.read_text()):
            found |= {int(row) for row in rows.split("_")}
    assert set(NEEDS) <= found, f"no test for {sorted(set(NEEDS) - found)}"
