"""The command line: `gptoss`, or `python -m gptoss`.

Exit codes: 0 done, 1 an error, 2 a command that makes no sense, 130 interrupted with Ctrl-C,
129 and 143 ended by SIGHUP and SIGTERM, 141 the reader of our output went away. What a command
needs is imported when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any

from gptoss.cli import (
    chat,
    check,
    convert,
    data,
    export,
    finetune,
    generate,
    info,
    local,
    run,
    serve,
    synth,
    train,
    viz,
)
from gptoss.cli.arguments import build_parser
from gptoss.cli.signals import Terminated, raising_terminated
from gptoss.errors import Error
from gptoss.extras import install_hint

_COMMANDS = (
    *(run, chat, serve, generate, info, check),
    *(local.PULL, local.LIST, local.RM, convert, synth),
    *(data, train, export, finetune, viz),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. `argv` is for tests: without it, sys.argv is read."""
    _open_closed_streams()
    # What models write is UTF-8, whatever the locale says.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    parser = build_parser(_COMMANDS)
    arguments = parser.parse_args(argv)
    warnings.showwarning = _show_warning
    # The others write nothing, and a signal that waited for a step of theirs would end them late.
    writers = [module.run for module in (convert, synth, data, train, export, finetune, viz)]
    try:
        # Within another program, its own answer to signals stays.
        own = argv is None and arguments.run in writers
        with raising_terminated() if own else nullcontext():
            code: int = arguments.run(arguments, parser)
        sys.stdout.flush()
        return code
    except Terminated as ended:
        with suppress(OSError):  # the terminal may be gone
            print(f"gptoss: ended by {signal.Signals(ended.number).name}", file=sys.stderr)
            sys.stderr.flush()
        os._exit(128 + ended.number)  # for the same reason as below
    except KeyboardInterrupt:
        print(file=sys.stderr)
        if argv is None:
            # The worker may be inside a long step; the interpreter's own end would wait for it.
            sys.stderr.flush()
            os._exit(130)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; that includes the flush at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        if getattr(arguments, "debug", False) or (error.name or "").startswith("gptoss"):
            raise
        print(
            f"gptoss: error: this command needs the Python package {error.name}: "
            f"{install_hint('train')}",
            file=sys.stderr,
        )
        return 1
    except (Error, OSError, MemoryError) as error:
        if getattr(arguments, "debug", False):
            raise
        message = "out of memory" if isinstance(error, MemoryError) and not str(error) else error
        print(f"gptoss: error: {' '.join(str(message).splitlines())}", file=sys.stderr)
        return 1


def _open_closed_streams() -> None:
    """A stream that was closed before we began reads or writes nothing, and is not the next file
    that is opened.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"gptoss: warning: {message}", file=sys.stderr)
