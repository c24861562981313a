"""The command line of ``python -m velociloop``.

Every program is run the way the interpreter would run it, in the very module ``__main__``, after asyncio was told
which loop is the default.  The REPL is a program too: asyncio's own, ``-m asyncio``.  So nothing here imitates a REPL,
a way of importing, or an exit status: SystemExit and KeyboardInterrupt leave through the interpreter.
"""

import argparse
import builtins
import importlib.machinery
import io
import os
import pkgutil
import platform
import runpy
import sys
from collections.abc import Callable
from types import CodeType, TracebackType
from typing import Any, NoReturn, cast

from ._accelerator import accelerated
from ._version import __version__
from .policy import replace_default_loop
from .uv.core import libuv_version

__all__ = ["main"]

_DESCRIPTION = "Run a Python program, or asyncio's REPL, with velociloop's event loop in place of asyncio's."

_EPILOG = """\
Without a program this is the REPL of "python -m asyncio": "await" works at the top level, and asyncio and
velociloop are imported. A program runs as "python script ..." would run it; it need not know velociloop. What it
asks for by name (a loop factory, a policy, a loop class) it gets.
Options of the interpreter come first, as in "python -X dev -m velociloop script.py".

"python -m velociloop bench" measures what the installed event loops need on this machine, in about a minute
("bench --help" tells more); a script of that name is run as "./bench".
"""


def main() -> None:
    """Read ``sys.argv`` and do what it says.

    Returns or raises what the program does; SystemExit with status 2 if the arguments are wrong.
    """
    arguments = sys.argv[1:]
    parser = _parser()
    length = _count_own_options(arguments)
    own = parser.parse_args(arguments[:length])
    if own.version:
        print(version_text())
        return
    if arguments[length : length + 1] == ["bench"]:
        from ._bench import main as bench  # it takes as long to import as the rest, and few want it

        bench(arguments[length + 1 :])
        return
    run = _program(parser, arguments[length:])
    replace_default_loop()
    run()


def version_text() -> str:
    """Return what ``--version`` prints: the versions of all that takes part."""
    return (
        f"velociloop {__version__} ({'with its accelerator' if accelerated() else 'pure Python'}), "
        f"libuv {libuv_version()}, {platform.python_implementation()} {platform.python_version()}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m velociloop",
        usage="%(prog)s [-h] [-V] [-c code | -m module | script | - | bench] [argument ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-V",
        "--version",
        action="store_true",
        help="print the versions of velociloop, libuv and Python, and whether the accelerator is in use",
    )
    # Described here, read by _program: what follows them is the program's, whatever it looks like.
    parser.add_argument("-c", metavar="code", help="run the code given as a string")
    parser.add_argument("-m", metavar="module", help="run a module by its name, as python -m does")
    parser.add_argument("script", nargs="?", help="a file, a directory or a zip file; - is standard input")
    parser.add_argument("argument", nargs="*", help="what the program finds in sys.argv[1:]")
    return parser


def _count_own_options(arguments: list[str]) -> int:
    """Return how many of ``arguments`` stand before the program."""
    for index, argument in enumerate(arguments):
        if argument in ("-", "--") or argument[:2] in ("-c", "-m") or not argument.startswith("-"):
            return index
    return len(arguments)


def _program(parser: argparse.ArgumentParser, arguments: list[str]) -> Callable[[], None]:
    """Return what runs the program that ``arguments`` begin with; exits with status 2 if they name none."""
    if not arguments:
        return _run_repl
    if arguments[0] == "--":
        if len(arguments) == 1:
            return _run_repl
        return lambda: _run_script(arguments[1], arguments[2:])
    if arguments[0] == "-":
        return lambda: _run_standard_input(arguments[1:])
    option = arguments[0][:2]
    if option not in ("-c", "-m"):
        return lambda: _run_script(arguments[0], arguments[1:])
    if arguments[0] != option:
        value, rest = arguments[0][2:], arguments[1:]
    elif len(arguments) > 1:
        value, rest = arguments[1], arguments[2:]
    else:
        parser.error(f"argument {option}: expected one argument")
    if option == "-c":
        return lambda: _run_string(value, rest)
    return lambda: _run_module(value, rest)


def _run_repl() -> None:
    # The REPL makes its namespace itself. What `site` gives to interactive sessions (help, exit) is found in builtins.
    cast(Any, builtins).velociloop = sys.modules[__package__]
    if not sys.flags.quiet:
        print(version_text(), file=sys.stderr)
    _run_module("asyncio", [])


def _run_module(name: str, arguments: list[str]) -> None:
    _main_namespace()
    # As the interpreter has it while the module is looked for; then runpy writes the module's path there.
    sys.argv = ["-m", *arguments]
    _execute_module(name, True)


def _run_script(path: str, arguments: list[str]) -> None:
    sys.argv = [path, *arguments]
    # Not os.path.abspath(), which the interpreter does not use either: "link/../script.py" is not "script.py".
    absolute = os.getcwd() if path == "." else os.path.join(os.getcwd(), path)
    if pkgutil.get_importer(absolute) is not None:
        # A directory or a zip file: it is put onto the path even if the script's directory would not be.
        sys.path[:] = [absolute, *sys.path[0 if sys.flags.safe_path else 1 :]]
        _main_namespace()
        _execute_module("__main__", False)
        return
    _replace_first_path(os.path.dirname(os.path.realpath(absolute)))
    loader: Any
    if path.endswith(".pyc"):
        loader = importlib.machinery.SourcelessFileLoader("__main__", absolute)
    else:
        loader = importlib.machinery.SourceFileLoader("__main__", absolute)
    try:
        with io.open_code(absolute) as file:
            data = file.read()
    except OSError as error:
        _cannot_open(absolute, error)
    namespace = _main_namespace()
    namespace.update(__file__=absolute, __cached__=None, __loader__=loader, __package__=None, __spec__=None)
    if path.endswith(".pyc"):
        _execute(lambda: cast(CodeType, loader.get_code("__main__")), namespace)
    else:
        _execute(lambda: compile(data, absolute, "exec", dont_inherit=True), namespace)


def _cannot_open(path: str, error: OSError) -> NoReturn:
    print(f"{sys.executable}: can't open file {path!r}: [Errno {error.errno}] {error.strerror}", file=sys.stderr)
    sys.exit(2)


def _run_string(source: str, arguments: list[str]) -> None:
    _run_source("-c", source, "<string>", arguments, {})


def _run_standard_input(arguments: list[str]) -> None:
    _run_source("-", sys.stdin.buffer.read(), "<stdin>", arguments, {"__file__": "<stdin>", "__cached__": None})


def _run_source(
    name: str, source: str | bytes, filename: str, arguments: list[str], further: dict[str, str | None]
) -> None:
    """Run ``source``, which is in no file; ``name`` is its ``sys.argv[0]``, ``further`` are names that it finds."""
    sys.argv = [name, *arguments]
    _replace_first_path("")
    namespace = _main_namespace()
    namespace.update(__loader__=importlib.machinery.BuiltinImporter, __package__=None, __spec__=None, **further)
    _execute(lambda: compile(source, filename, "exec", dont_inherit=True), namespace)


def _replace_first_path(entry: str) -> None:
    """Put ``entry`` where the interpreter put the current directory for ``-m velociloop``, if it did."""
    if not sys.flags.safe_path:
        sys.path[0] = entry


def _main_namespace() -> dict[str, Any]:
    """Return the names of the module ``__main__``, without those that ``python -m velociloop`` has put there.

    It stays the same module, also once the program's code has ended: its threads, exit handlers and
    pickles go on to find it.
    """
    namespace = vars(sys.modules["__main__"])
    for name in [name for name in namespace if not name.startswith("__")]:
        del namespace[name]
    for name in "__file__", "__cached__":
        namespace.pop(name, None)
    namespace["__doc__"] = None
    return namespace


def _execute(compiled: Callable[[], CodeType], namespace: dict[str, Any]) -> None:
    """Run what ``compiled`` returns as the program."""
    try:
        code = compiled()
    except (SyntaxError, ValueError, ImportError, EOFError) as error:
        _show_frames(error, None)
        raise
    try:
        exec(code, namespace)
    except SystemExit:
        raise
    except BaseException as error:
        _show_frames(error, cast(TracebackType, error.__traceback__).tb_next)
        raise


def _execute_module(name: str, is_module: bool) -> None:
    """Run the module ``name`` as the program; ``is_module`` is false for the ``__main__`` of a directory or zip file.

    This is the function that the interpreter calls for its own ``-m``, with these arguments.  runpy's public ones
    take ``sys.argv`` and ``__main__`` away when the module's code ends, while its threads may still run.
    """
    try:
        cast(Any, runpy)._run_module_as_main(name, is_module)
    except SystemExit:
        raise
    except BaseException as error:
        _show_frames(error, cast(TracebackType, error.__traceback__).tb_next)
        raise


def _show_frames(error: BaseException, shown: TracebackType | None) -> None:
    """Let whoever reports ``error`` see ``shown`` as its traceback: without the frames of ``python -m velociloop``.

    The exception itself must leave through the interpreter, which exits by SIGINT for a KeyboardInterrupt and would
    add the frames again.  The hook is put around the program's as late as possible, and removes itself.
    """
    program_hook = getattr(sys, "excepthook", None)
    if program_hook is None:
        return

    def hook(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        sys.excepthook = program_hook
        if value is error:
            sys.last_traceback = traceback = shown
            value.__traceback__ = shown
        program_hook(kind, value, traceback)

    sys.excepthook = hook
