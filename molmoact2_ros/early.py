"""A program between its start and its own signal handlers: Ctrl-C ends it at once, and without a traceback."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

INTERRUPTED = 130
"""Exit status of a program that Ctrl-C ended, as a shell has it."""


def quiet_until_ready(program: str, words: str = "") -> None:
    """Let SIGINT end this process at once, after `words` on standard error, if what is imported is the program that was
    started: by `python -m`, or under a name that ends with `program`. In any other process nothing changes.

    For programs that own nothing before they set handlers of their own. KeyboardInterrupt is no way out of an import:
    some libraries make another error of it.
    """
    # While `python -m` looks for the module, its parents are imported and this is what the first argument says.
    started = sys.argv[:1] == ["-m"] or (bool(sys.argv) and Path(sys.argv[0]).name.endswith(program))

    def end(*_: object) -> None:
        os.write(2, words.encode())
        os._exit(INTERRUPTED)

    if started and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, end)
