"""`python -m velociloop` without a program: in a terminal (Ctrl-C, Ctrl-D, history), and with its input from a pipe.

`python -m asyncio`, whose REPL it is, is the oracle.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import HANG_S, until_blocked
from test_main_module import OUR_LOOP, OURS, THEIR_LOOP, environment, python, write

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and terminals")

CTRL_C, CTRL_D, CTRL_P, ENTER = "\x03", "\x04", "\x10", "\r"

# Makes its standard input the controlling terminal of its new session: then Ctrl-C is a signal.
IN_TERMINAL = """\
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Terminal:
    """An interpreter at a pseudo-terminal, and what it has written there."""

    def __init__(self, arguments: list[str], env: dict[str, str], folder: Path) -> None:
        self._screen, far = os.openpty()
        try:
            self.child = subprocess.Popen(
                [sys.executable, "-c", IN_TERMINAL, *arguments],
                cwd=folder,
                env=env,
                stdin=far,
                stdout=far,
                stderr=far,
                start_new_session=True,
            )
        finally:
            os.close(far)
        self._killer = threading.Timer(2 * HANG_S, self.child.kill)
        self._killer.start()
        self._unseen = ""

    def _read(self) -> bool:
        try:
            data = os.read(self._screen, 1 << 16)
        except OSError:  # EIO: nobody has the terminal open any more
            return False
        self._unseen += data.decode(errors="replace")
        return bool(data)

    def expect(self, text: str) -> str:
        """Wait until `text` is written, and return what was written before it."""
        while text not in self._unseen:
            assert self._read(), f"it ended without {text!r}:\n{self._unseen}"
        before, _, self._unseen = self._unseen.partition(text)
        return before

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def prompt(self) -> str:
        return self.expect(">>> ")

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit status and what is left unseen."""
        while self._read():
            pass
        return self.child.wait(), self._unseen

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        self._killer.cancel()
        self._killer.join()
        os.close(self._screen)


@pytest.fixture(params=["asyncio", "velociloop"])
def program(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["readline", "pyrepl"])
def start(request: pytest.FixtureRequest, program: str, tmp_path: Path) -> Iterator[Callable[[], Terminal]]:
    """Starts the REPL of `program`; with the line editor of old Pythons, and with that of 3.13 and later."""
    try:
        for fd in os.openpty():
            os.close(fd)
    except OSError as error:
        pytest.skip(f"no pseudo-terminals here: {error}")
    if request.param == "pyrepl" and importlib.util.find_spec("_pyrepl") is None:
        pytest.skip("this Python's REPL has no pyrepl")
    if request.param == "readline" and importlib.util.find_spec("readline") is None:
        pytest.skip("this Python has no readline")
    env = environment(tmp_path, TERM="xterm")
    if request.param == "readline":
        env["PYTHON_BASIC_REPL"] = "1"
    opened: list[Terminal] = []

    def start_one() -> Terminal:
        terminal = Terminal(["-W", "error", "-m", program], env, tmp_path)
        opened.append(terminal)
        terminal.expect("import asyncio")
        terminal.prompt()
        return terminal

    yield start_one
    for terminal in opened:
        terminal.close()


def ask(terminal: Terminal, expression: str, answer: str) -> None:
    """Have `expression` evaluated; nothing of `answer` may stand in it, since what is typed is seen as well."""
    assert answer not in expression
    terminal.type(expression + ENTER)
    terminal.expect(answer)
    terminal.prompt()


def test_repl_awaits_on_its_loop(start: Callable[[], Terminal], program: str) -> None:
    terminal = start()
    ask(terminal, "await asyncio.sleep(0, 'awa' + 'ited')", "awaited")
    loop = "velociloop.loop" if program == "velociloop" else "asyncio.unix_events"
    ask(terminal, "type(asyncio.get_running_loop())", f"<class '{loop}.")
    terminal.type(CTRL_D)
    assert terminal.end()[0] == 0


def test_repl_ctrl_c_during_an_await(start: Callable[[], Terminal]) -> None:
    terminal = start()
    ask(terminal, "event = asyncio.Event(); 'ma' + 'de'", "made")
    terminal.type("print('wai' + 'ting'); await event.wait()" + ENTER)
    terminal.expect("waiting")
    until_blocked(terminal.child.pid)  # asyncio's REPL of 3.13.0 hangs if interrupted before, with any loop
    terminal.type(CTRL_C)
    terminal.prompt()
    ask(terminal, "'al' + 'ive', event", "('alive', <asyncio.locks.Event")
    terminal.type(CTRL_D)
    assert terminal.end()[0] == 0


def test_repl_ctrl_c_at_the_prompt(start: Callable[[], Terminal]) -> None:
    terminal = start()
    ask(terminal, "'rea' + 'dy'", "ready")  # or the main thread might not have come to its loop, and would die
    until_blocked(terminal.child.pid)
    terminal.type(CTRL_C)
    # Whatever a version's line editor makes of the line that was begun, the next one is whole.
    terminal.type(ENTER)
    terminal.prompt()
    ask(terminal, "await asyncio.sleep(0, 'al' + 'ive')", "alive")
    terminal.type(CTRL_D)
    assert terminal.end()[0] == 0


def test_repl_history(start: Callable[[], Terminal]) -> None:
    terminal = start()
    ask(terminal, "40000 + 2", "40002")
    terminal.type(CTRL_P)
    terminal.expect("40000 + 2")
    terminal.type(ENTER)
    terminal.expect("40002")
    terminal.prompt()
    terminal.type(CTRL_D)
    assert terminal.end()[0] == 0


def test_repl_exit_status(start: Callable[[], Terminal]) -> None:
    terminal = start()
    terminal.type("exit(3)" + ENTER)
    assert terminal.end()[0] == 3


# -- without a terminal

PIPED = """\
type(asyncio.get_event_loop()).__name__
await asyncio.sleep(0, "awaited")
async def double(n):
    await asyncio.sleep(0)
    return 2 * n

await asyncio.gather(*map(double, range(3)))
print(__name__, __import__("sys").argv[1:])
1 / 0
"""


@pytest.mark.ours("the command line is")
@pytest.mark.parametrize("end", ["", "exit(3)\n", "raise SystemExit('bye')\n", "await asyncio.sleep(0); exit(4)\n"])
def test_repl_with_piped_code(tmp_path: Path, end: str) -> None:
    write(tmp_path, "startup.py", "print('started up')\n")
    options = {"source": PIPED + end, "PYTHONSTARTUP": "startup.py"}
    status, output, errors = python(tmp_path, "-m", "asyncio", **options)
    assert f"'{THEIR_LOOP}'" in output + errors
    versions, _, rest = (ours := python(tmp_path, *OURS, **options))[2].partition("\n")
    assert (ours[0], ours[1], rest) == (
        status,
        output.replace(THEIR_LOOP, OUR_LOOP),
        errors.replace(THEIR_LOOP, OUR_LOOP),
    )
    assert versions + "\n" == python(tmp_path, *OURS, "--version")[1]


@pytest.mark.ours("the command line is")
def test_repl_has_the_package(tmp_path: Path) -> None:
    source = "print(await asyncio.sleep(0, velociloop.__name__))\n"
    status, output, errors = python(tmp_path, "-q", *OURS, source=source)
    assert status == 0
    assert "velociloop\n" in output
    assert "velociloop" not in errors  # -q: no versions either
