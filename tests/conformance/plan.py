"""What is run: modules of CPython's ``test.test_asyncio``, and the tests of them that are left out.

A module more is a row more in `MODULES`. A test is left out only if it looks into the selector loop's own insides
(mocks its private methods, builds its private classes by hand), never because it fails; each with its reason, in
`EXCLUSIONS`. The runner fails when a row there no longer matches anything.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Module:
    """A module of CPython's test suite."""

    name: str
    #: Shell-style patterns of the tests to run, as "Class.method".
    select: tuple[str, ...] = ("*",)
    #: Whether its BaseEventLoops with mocked input and output become real loops (child.unmock).
    unmock: bool = False
    #: Whether it is run in asyncio's debug mode as well, in which velociloop takes other paths.
    debug: bool = False
    #: Seconds that one of its tests may take.
    test_limit_s: float = 120.0
    #: Seconds that the module may take.
    limit_s: float = 480.0
    #: The first Python version that has it.
    first: tuple[int, int] = (3, 11)
    #: Environment variables that it is run with, and a word for what they do.
    environment: tuple[tuple[str, str], ...] = ()
    variant: str = ""

    @property
    def short_name(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def label(self) -> str:
        return f"{self.short_name}[{self.variant}]" if self.variant else self.short_name


@dataclass(frozen=True)
class Exclusion:
    """Tests of a module that say nothing about a loop's behaviour."""

    module: str
    #: Shell-style pattern of "Class.method".
    pattern: str
    reason: str
    #: The Python versions in which it must match something, both included. A test that maintenance releases brought to
    #: earlier versions too is left out there where it is found; later ones are run.
    first: tuple[int, int] = (3, 11)
    last: tuple[int, int] = (3, 99)

    def applies(self) -> bool:
        return sys.version_info[:2] <= self.last

    def must_match(self) -> bool:
        return self.first <= sys.version_info[:2] <= self.last


_PACKAGE = "test.test_asyncio."

_MAKES_NONE = "makes no loop"
_WINDOWS = "for Windows"

#: The modules of test.test_asyncio that are not run.
LEFT_OUT = {
    "test_futures": _MAKES_NONE,
    "test_proactor_events": _WINDOWS,
    "test_protocols": _MAKES_NONE,
    "test_selector_events": "white-box: the selector loop's own methods, on loops and transports with mocks in them",
    "test_tools": _MAKES_NONE,
    "test_transports": _MAKES_NONE,
    "test_windows_events": _WINDOWS,
    "test_windows_utils": _WINDOWS,
}

#: Every module that runs loops or transports.
MODULES = (
    Module(_PACKAGE + "test_buffered_proto", debug=True),
    Module(_PACKAGE + "test_events", debug=True),
    Module(_PACKAGE + "test_runners", unmock=True, debug=True),
    Module(_PACKAGE + "test_sendfile", debug=True),
    Module(_PACKAGE + "test_server", debug=True),
    Module(_PACKAGE + "test_ssl", debug=True),
    Module(_PACKAGE + "test_streams", debug=True),
    Module(_PACKAGE + "test_base_events"),
    Module(_PACKAGE + "test_context"),
    Module(_PACKAGE + "test_eager_task_factory", first=(3, 12)),
    Module(_PACKAGE + "test_free_threading", first=(3, 14)),
    Module(_PACKAGE + "test_futures2"),
    Module(_PACKAGE + "test_graph", first=(3, 14)),
    Module(_PACKAGE + "test_locks"),
    Module(_PACKAGE + "test_pep492", unmock=True),
    Module(_PACKAGE + "test_queues"),
    Module(_PACKAGE + "test_sock_lowlevel", debug=True),
    Module(_PACKAGE + "test_sslproto", debug=True),
    Module(_PACKAGE + "test_staggered", first=(3, 13)),
    Module(_PACKAGE + "test_subprocess", debug=True),
    Module(_PACKAGE + "test_subprocess", environment=(("VELOCILOOP_SPAWN", "uv"),), variant="uv"),
    Module(_PACKAGE + "test_taskgroups"),
    Module(_PACKAGE + "test_tasks"),
    Module(_PACKAGE + "test_threads"),
    Module(_PACKAGE + "test_timeouts"),
    Module(_PACKAGE + "test_unix_events"),
    Module(_PACKAGE + "test_waitfor"),
)


def modules() -> tuple[Module, ...]:
    """The modules that this Python has."""
    return tuple(module for module in MODULES if module.first <= sys.version_info[:2])


_MOCK_SOCKET = (
    "white-box: puts a MagicMock in place of the socket (as a descriptor it counts as 1, standard output) and a Mock "
    "in place of _add_reader, which the selector loop's own transport would call"
)
_WITH_SELECTOR = "BaseEventLoopWithSelectorTests."

EXCLUSIONS: tuple[Exclusion, ...] = (
    Exclusion(_PACKAGE + "test_base_events", _WITH_SELECTOR + "test_create_connection_ip_addr", _MOCK_SOCKET),
    Exclusion(_PACKAGE + "test_base_events", _WITH_SELECTOR + "test_create_connection_ipv6_scope", _MOCK_SOCKET),
    Exclusion(_PACKAGE + "test_base_events", _WITH_SELECTOR + "test_create_connection_no_inet_pton", _MOCK_SOCKET),
    Exclusion(_PACKAGE + "test_base_events", _WITH_SELECTOR + "test_create_connection_service_name", _MOCK_SOCKET),
    Exclusion(
        _PACKAGE + "test_base_events",
        _WITH_SELECTOR + "test_create_server_soreuseport_only_defined",
        "white-box: listens on a Mock, and expects the ValueError by which the selector refuses a Mock as descriptor",
    ),
    Exclusion(
        _PACKAGE + "test_ssl",
        "TestSSL.test_remote_shutdown_receives_trailing_data_on_slow_socket",
        "white-box: forces a code path of _SelectorSocketTransport by way of its _read_ready_cb and _sock",
        first=(3, 14),
    ),
    Exclusion(
        _PACKAGE + "test_subprocess",
        "GenericWatcherTests.test_create_subprocess_fails_with_inactive_watcher",
        "white-box: puts a mock in place of the policy's child watcher, which velociloop does not ask",
        last=(3, 13),
    ),
    Exclusion(
        _PACKAGE + "test_subprocess",
        "SubprocessThreadedWatcherTests.test_pid_not_reaped_before_exit_published",
        "white-box: looks for the thread of asyncio's child watcher, which velociloop does not have",
        first=(3, 14),
    ),
    Exclusion(
        _PACKAGE + "test_threads",
        "ToThreadTests.test_to_thread_concurrent",
        "unsound: counts calls from ten threads in a Mock, which loses some (on PyPy with asyncio's own loop 43 of "
        "3,000 runs lost one); newer Pythons count otherwise",
        last=(3, 12),
    ),
    Exclusion(
        _PACKAGE + "test_unix_events",
        "PidfdChildWatcherTests.test_pidfd_closed_when_waitpid_raises",
        "white-box: waits until the child watcher calls os.waitpid, which it has replaced; in velociloop Popen reaps, "
        "with the waitpid that it has kept (the descriptor of a failed reaping: tests/test_subprocess_ends.py)",
        first=(3, 14),
    ),
    Exclusion(
        _PACKAGE + "test_subprocess",
        "SubprocessFastWatcherTests.*",
        "white-box: attaches the child watcher that reaps every child of the process on SIGCHLD, also those that "
        "it was not asked for, as velociloop does not ask it",
        last=(3, 13),
    ),
    Exclusion(
        _PACKAGE + "test_sslproto",
        "SelectorStartTLSTests.test_create_connection_ssl_failed_certificate_no_cycles",
        "white-box: learns of the transport by a patched method of asyncio's SSLProtocol (what it asks for, of "
        "velociloop's: tests/test_tls_engine_ends.py)",
        first=(3, 14),
    ),
    Exclusion(
        _PACKAGE + "test_sslproto",
        "SslProtoHandshakeTests.test_connection_lost_when_busy",
        "white-box: calls _make_socket_transport with a Mock for a socket, whose send() the transport is to call",
        first=(3, 14),
    ),
)
