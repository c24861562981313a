"""`python -m velociloop`: programs run as plain `python` runs them, on our loop; the oracle is plain `python`."""

from __future__ import annotations

import asyncio
import os
import py_compile
import re
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from support import HANG_S, until_blocked

import velociloop
from velociloop import _accelerator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and terminals")

PYPY = sys.implementation.name == "pypy"
OURS = ["-m", "velociloop"]
#: What tells the loops apart in the output of otherwise equal programs.
THEIR_LOOP = asyncio.SelectorEventLoop.__name__
OUR_LOOP = velociloop.Loop.__name__


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """This process's environment, less what would change the output, with the package importable everywhere."""
    package = str(Path(velociloop.__file__).parent.parent)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") or k == "PYTHONPATH"}
    paths = [package, *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "HOME": str(folder), "NO_COLOR": "1", **changes}


def python(
    folder: Path, *arguments: str, source: str = "", **changes: str
) -> tuple[int, str, str]:
    """Exit status, output and errors of an interpreter with `arguments`, run in `folder`, `source` on its stdin."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(folder, **changes),
        input=source,
        capture_output=True,
        text=True,
        timeout=2 * HANG_S,
    )
    return done.returncode, _without_chance(done.stdout), _without_chance(done.stderr)


def _without_chance(text: str) -> str:
    """Drop addresses, and the line at which a concurrent.futures.Future was waited for: before or after it was set."""
    text = re.sub(r"\b0x[0-9a-f]+\b", "0x", text)
    return re.sub(r'(concurrent/futures/_base.py", line )\d+(, in result)', r"\1N\2", text)


def write(folder: Path, name: str, source: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(source))


# -- programs that have nothing to do with asyncio: no difference at all ---------------------------------------------

LOOK = """\
import sys
def fail():
    raise LookupError("on purpose")
found = dict(vars())
print({name: value for name, value in sorted(found.items())})
print(sys.argv, sys.path[0], sys.modules["__main__"].__dict__ is globals())
fail()
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    for name in "look.py", "folder/__main__.py", "package/__main__.py":
        write(folder, name, LOOK)
    (folder / "package" / "__init__.py").touch()
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", LOOK)
    (folder / "link.py").symlink_to(folder / "folder" / "__main__.py")
    write(folder, "broken.py", "import sys\nx = (\n")
    (folder / "latin.py").write_bytes(b"#!/usr/bin/python\n# coding: latin-1\nprint(ascii('\xe9'))\n")
    write(folder, "leave.py", "import sys\nsys.exit('bye')\n")
    write(folder, "leave3.py", "raise SystemExit(3)\n")
    write(
        folder,
        "interrupted.py",
        """\
        import atexit, signal
        atexit.register(print, "at exit")
        def wait():
            signal.raise_signal(signal.SIGINT)
            while True:
                pass
        wait()
        """,
    )
    write(
        folder,
        "hooked.py",
        """\
        import atexit, sys, traceback
        def hook(kind, value, tb):
            print("hook", kind, value, [frame.name for frame in traceback.extract_tb(tb)], sys.last_traceback is tb)
            print([frame.name for frame in traceback.extract_tb(value.__traceback__)])
        sys.excepthook = hook
        atexit.register(lambda: print(sys.excepthook is hook))
        try:
            try:
                {}["key"]
            except KeyError as error:
                raise ValueError("chained") from error
        except ValueError:
            traceback.print_exc()
        1 / 0
        """,
    )
    write(
        folder,
        "late.py",
        """\
        import atexit, pickle, sys, threading
        class Thing:
            pass
        def look(who):
            pickle.loads(pickle.dumps(Thing()))
            print(who, sys.argv, sys.modules["__main__"].Thing is Thing, __name__)
        def wait():
            threading.main_thread().join()
            look("thread")
        atexit.register(look, "at exit")
        threading.Thread(target=wait).start()
        """,
    )
    # Its children make no loop that is ours, but they run.
    write(
        folder,
        "children.py",
        """\
        import asyncio, multiprocessing, os, sys
        async def kind():
            return type(asyncio.get_running_loop()).__name__
        def work(n):
            return n * n, asyncio.run(kind()), __name__
        if __name__ == "__main__":
            for method in "spawn", "forkserver":
                with multiprocessing.get_context(method).Pool(2) as pool:
                    print(method, pool.map(work, range(3)))
                    pool.close()
                    pool.join()
        """,
    )
    py_compile.compile(str(folder / "look.py"), str(folder / "look.pyc"), dfile="look.py", doraise=True)
    return folder


SAME = {
    "script": ["look.py", "a", "-m", "--version"],
    "script behind --": ["--", "look.py", "-x"],
    "script by link": ["link.py"],
    "compiled script": ["look.pyc"],
    "module": ["-m", "look", "a", "-c", "--help"],
    "module, attached": ["-mlook", "a"],
    "package": ["-m", "package"],
    "folder": ["folder", "a"],
    "zip file": ["archive.zip", "a"],
    "code": ["-c", "import sys; print(sorted(vars().items()), sys.argv, sys.path[0])", "a", "-m"],
    "code that is empty": ["-c", ""],
    "code that looks like an option": ["-c", "-1"],
    "code that fails to compile": ["-c", "x = ("],
    "standard input": ["-", "a", "-c"],
    "syntax error": ["broken.py"],
    "syntax error in a module": ["-m", "broken"],
    "declared encoding": ["latin.py"],
    "no such module": ["-m", "no_such_module"],
    "no such submodule": ["-m", "package.nothing"],
    "folder without a program": ["."],
    "message as exit status": ["leave.py"],
    "exit status": ["leave3.py"],
    "exit status of a module": ["-m", "leave3"],
    "KeyboardInterrupt": ["interrupted.py"],
    "KeyboardInterrupt in a module": ["-m", "interrupted"],
    "its own excepthook": ["hooked.py"],
    "its own excepthook, as a module": ["-m", "hooked"],
    "threads and exit handlers": ["late.py"],
    "threads and exit handlers of a module": ["-m", "late"],
    "child processes": ["children.py"],
    "child processes of a module": ["-m", "children"],
    "a module that has options": ["-m", "json.tool", "--no-such-option"],
}
if not PYPY:
    # PyPy says this without quotes; and it shortens "./" in the file names of tracebacks.
    SAME["no such script"] = ["no_such_script.py"]
    SAME["script by a long way"] = ["./folder/../look.py"]


@pytest.mark.ours("the command line is")
@pytest.mark.parametrize("arguments", SAME.values(), ids=SAME.keys())
def test_as_plain_python(programs: Path, arguments: list[str]) -> None:
    source = LOOK if arguments[0] == "-" else ""
    expected = python(programs, *arguments, source=source)
    assert python(programs, *OURS, *arguments, source=source) == expected


@pytest.mark.ours("the command line is")
@pytest.mark.parametrize("arguments", [["look.py"], ["-m", "look"], ["folder"], ["-c", "import sys; print(sys.path)"]])
@pytest.mark.parametrize("flags", [["-P"], ["-O", "-X", "dev"], ["-i"]])
def test_as_plain_python_with_options_of_the_interpreter(
    programs: Path, flags: list[str], arguments: list[str]
) -> None:
    """The safe path; optimised; interactive afterwards, where the debugger's last traceback is the program's too."""
    source = "import sys; print(__name__, sys.argv)\nprint(sys.last_traceback.tb_frame.f_code.co_name)\n"
    expected = python(programs, *flags, *arguments, source=source)
    assert python(programs, *flags, *OURS, *arguments, source=source) == expected


# -- programs on asyncio: the loop, and nothing else, is another -----------------------------------------------------

ASK = {
    "asyncio.run": "asyncio.run(look())",
    "Runner": """\
        with asyncio.Runner() as runner:
            runner.run(look())
        """,
    "new_event_loop": """\
        loop = asyncio.new_event_loop()
        print(type(loop).__name__)
        loop.run_until_complete(look())
        loop.close()
        """,
    "get_event_loop": """\
        loop = asyncio.get_event_loop()
        loop.run_until_complete(look())
        loop.close()
        """,
    "a policy's get_event_loop": """\
        loop = asyncio.get_event_loop_policy().get_event_loop()
        loop.run_until_complete(look())
        loop.close()
        """,
    "a policy's new_event_loop": """\
        loop = asyncio.get_event_loop_policy().new_event_loop()
        loop.run_until_complete(look())
        loop.close()
        """,
    "a thread": """\
        import threading
        thread = threading.Thread(target=lambda: asyncio.run(look()))
        thread.start()
        thread.join()
        """,
    "unittest": """\
        import io, unittest
        class Test(unittest.IsolatedAsyncioTestCase):
            async def test(self):
                await look()
        print(unittest.TextTestRunner(io.StringIO()).run(unittest.defaultTestLoader.loadTestsFromTestCase(Test)))
        """,
    "a failing main": """\
        async def fail():
            raise LookupError("on purpose")
        try:
            asyncio.run(fail())
        except LookupError as error:
            print(repr(error))
        asyncio.run(look())
        """,
    "exit from a coroutine": """\
        async def leave():
            await look()
            sys.exit(4)
        asyncio.run(leave())
        """,
    "a forked child": """\
        import multiprocessing
        def work():
            asyncio.run(look())
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join()
        print(child.exitcode)
        """,
}

GETS = {
    "a loop factory": """\
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(look())
        """,
    "a class of its own": """\
        class OwnLoop(asyncio.SelectorEventLoop):
            pass
        with asyncio.Runner(loop_factory=OwnLoop) as runner:
            runner.run(look())
        """,
    "a policy of its own": """\
        class OwnLoop(asyncio.SelectorEventLoop):
            pass
        class OwnPolicy(asyncio.DefaultEventLoopPolicy):
            def new_event_loop(self):
                return OwnLoop()
        asyncio.set_event_loop_policy(OwnPolicy())
        asyncio.run(look())
        """,
    "the default policy": """\
        asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
        asyncio.run(look())
        """,
    "no policy any more": """\
        asyncio.set_event_loop_policy(None)
        asyncio.run(look())
        """,
}

LOOK_AT_LOOP = """\
import asyncio, sys
async def look():
    await asyncio.sleep(0)
    print(type(asyncio.get_running_loop()).__name__, flush=True)
"""


def play(folder: Path, source: str, *flags: str) -> tuple[tuple[int, str, str], tuple[int, str, str]]:
    """Run a program plainly and by us."""
    (folder / "program.py").write_text(LOOK_AT_LOOP + textwrap.dedent(source))
    return python(folder, *flags, "program.py"), python(folder, *flags, *OURS, "program.py")


@pytest.mark.ours("the command line is")
@pytest.mark.parametrize("strict", [False, True], ids=["", "warnings are errors"])
@pytest.mark.parametrize("source", ASK.values(), ids=ASK.keys())
def test_need_30_the_default_loop_is_ours(tmp_path: Path, source: str, strict: bool) -> None:
    """No warning, and so no error, that the program would not get from asyncio alone (policies: 3.14)."""
    flags = ["-W", "error"] if strict else ["-W", "always"]
    (status, output, errors), ours = play(tmp_path, source, *flags)
    assert THEIR_LOOP in output or "Error" in errors or "Warning" in errors
    assert ours == (status, output.replace(THEIR_LOOP, OUR_LOOP), errors)


@pytest.mark.ours("the command line is")
@pytest.mark.parametrize("source", GETS.values(), ids=GETS.keys())
def test_need_30_a_program_gets_what_it_asks_for(tmp_path: Path, source: str) -> None:
    plain, ours = play(tmp_path, source, "-W", "always")
    assert OUR_LOOP not in plain[1].split()
    assert plain[0] == 0
    assert ours == plain


@pytest.mark.ours("the command line is")
@pytest.mark.parametrize("name", ["asyncio.run", "Runner", "new_event_loop", "a thread"])
def test_need_30_without_policies(tmp_path: Path, name: str) -> None:
    """What Python 3.16 removes is taken away first; touching it would be an error."""
    program = LOOK_AT_LOOP + textwrap.dedent(ASK[name])
    remove = """\
        import asyncio, sys
        def refuse(*args):
            raise AssertionError("policies are gone")
        vars(asyncio).pop("__getattr__", None)
        for name in [name for name in vars(asyncio) if "olicy" in name]:
            delattr(asyncio, name)
        asyncio.events.set_event_loop_policy = asyncio.events.get_event_loop_policy = refuse
        asyncio.set_event_loop = asyncio.events.set_event_loop = lambda loop: None  # a thread's own from then on
        from velociloop._command import main
        sys.argv[1:] = ["program.py"]
        main()
        """
    (tmp_path / "program.py").write_text(program)
    status, output, errors = python(tmp_path, "-W", "error", "-c", textwrap.dedent(remove))
    assert (status, errors) == (0, "")
    assert set(output.split()) == {OUR_LOOP}


@pytest.mark.ours("the command line is")
@pytest.mark.parametrize("arguments", [["program.py"], ["-m", "program"]], ids=["script", "module"])
def test_ctrl_c_ends_a_program_as_plain_python(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "program.py").write_text(
        LOOK_AT_LOOP
        + textwrap.dedent("""\
            async def main():
                await look()
                try:
                    await asyncio.sleep(3600)
                finally:
                    print("cleaned up", flush=True)
            asyncio.run(main())
            """)
    )

    def interrupt(*before: str) -> tuple[int, str, list[str]]:
        child = subprocess.Popen(
            [sys.executable, *before, *arguments],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        first = child.stdout.readline()
        until_blocked(child.pid)
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=2 * HANG_S)
        # Lines of the program and of runpy; between them asyncio's and the loop's own, which differ.
        ends = [line for line in errors.splitlines() if "program.py" in line or "runpy" in line]
        assert "_command.py" not in errors and "__main__.py" not in errors
        return child.returncode, first + output, [*ends, errors.splitlines()[-1]]

    status, output, ends = interrupt()
    assert (status, ends[-1]) == (-signal.SIGINT, "KeyboardInterrupt")
    assert interrupt(*OURS) == (status, output.replace(THEIR_LOOP, OUR_LOOP), ends)


@pytest.mark.ours("the command line is")
def test_frames_of_a_failing_program_are_its_own(tmp_path: Path) -> None:
    _, (status, _, errors) = play(tmp_path, "async def fail():\n    1 / 0\nasyncio.run(fail())\n")
    assert status == 1
    lines = [line.strip() for line in errors.splitlines() if line.startswith("  File ")]
    assert lines[0] == f'File "{tmp_path / "program.py"}", line 7, in <module>'
    assert not any("_command.py" in line for line in lines)


@pytest.mark.ours("the command line is")
def test_a_program_without_excepthook_is_reported_by_the_interpreter(tmp_path: Path) -> None:
    plain, ours = play(tmp_path, "del sys.excepthook\n1 / 0\n")
    assert (ours[0], ours[1]) == (plain[0], plain[1])
    for end in 0, -1:
        assert ours[2].splitlines()[end] == plain[2].splitlines()[end]


# -- the command's own options ---------------------------------------------------------------------------------------


@pytest.mark.ours("the command line is")
@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(tmp_path: Path, option: str) -> None:
    status, output, errors = python(tmp_path, "-W", "error", *OURS, option)
    assert (status, errors) == (0, "")
    assert output.count("\n") == 1
    assert f"velociloop {velociloop.__version__} " in output
    assert f"libuv {velociloop.libuv_version()}" in output
    assert f"{'PyPy' if PYPY else 'CPython'} {sys.version.split()[0].rstrip('+')}" in output
    assert ("pure Python" in output) is not _accelerator.accelerated()


@pytest.mark.ours("the command line is")
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(tmp_path: Path, option: str) -> None:
    status, output, errors = python(tmp_path, *OURS, option, COLUMNS="120")
    assert (status, errors) == (0, "")
    options = "-c code", "-m module", "script", "argument", "--version", "--help"
    for word in "usage: python -m velociloop", *options, "bench":
        assert word in output


@pytest.mark.ours("the command line is")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nothing"], "unrecognized arguments: --nothing"),
        (["-x", "program.py"], "unrecognized arguments: -x"),
        (["--vers"], "unrecognized arguments: --vers"),
        (["-m"], "argument -m: expected one argument"),
        (["-c"], "argument -c: expected one argument"),
    ],
)
def test_usage_errors(tmp_path: Path, arguments: list[str], message: str) -> None:
    status, output, errors = python(tmp_path, *OURS, *arguments)
    assert (status, output) == (2, "")
    assert errors.startswith("usage: python -m velociloop ")
    assert errors.splitlines()[-1] == f"python -m velociloop: error: {message}"


@pytest.mark.ours("the command line is")
def test_importing_the_module_runs_nothing(tmp_path: Path) -> None:
    assert python(tmp_path, "-c", "import velociloop.__main__") == (0, "", "")
