"""The keys of a terminal, one by one as they are pressed, and a terminal that is left as it was found."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import signal
import termios
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

ENTER, ESCAPE, BACKSPACE, TAB, ERASE_LINE = "<enter>", "<escape>", "<backspace>", "<tab>", "<erase line>"
PASTED = "<pasted>"
_NAMED = {"\r": ENTER, "\n": ENTER, "\x7f": BACKSPACE, "\x08": BACKSPACE, "\t": TAB, "\x15": ERASE_LINE}
_PASTE_ON, _PASTE_OFF = b"\x1b[?2004h", b"\x1b[?2004l"
_PASTE_BEGINS, _PASTE_ENDS = "\x1b[200~", "\x1b[201~"
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~]|[ -NP-Z\\^-~])")
"""What arrows, function keys and Alt send. None of their letters is a key that was pressed."""
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|O)?")

WAIT_S = 0.25
"""The listener comes by at least so often, which is also the console's sign of life."""


@dataclass(frozen=True)
class Key:
    """One key: the character that it types, or a name in angle brackets. `text`: what was pasted."""

    name: str
    text: str = ""


class KeyParser:
    """Bytes of a terminal in, keys out. What arrows, function keys and Alt send is left out."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._rest = ""

    def feed(self, data: bytes) -> list[Key]:
        """The keys that `data` completes."""
        self._rest += self._decoder.decode(data)
        return list(self._take())

    def idle(self) -> list[Key]:
        """Nothing has come for a while: an escape that no sequence followed was the key of that name."""
        rest, self._rest = self._rest, "" if not self._rest.startswith(_PASTE_BEGINS) else self._rest
        return [Key(ESCAPE)] if rest == "\x1b" else []

    def _take(self) -> Iterator[Key]:
        while self._rest:
            if self._rest.startswith(_PASTE_BEGINS):
                text, end, after = self._rest[len(_PASTE_BEGINS) :].partition(_PASTE_ENDS)
                if not end:
                    return
                self._rest = after
                yield Key(PASTED, " ".join(text.split()))
            elif self._rest[0] == "\x1b":
                found = _SEQUENCE.match(self._rest)
                if found is not None:
                    self._rest = self._rest[found.end() :]
                elif _UNFINISHED.fullmatch(self._rest):
                    return
                else:
                    self._rest = self._rest[1:]
                    yield Key(ESCAPE)
            else:
                character, self._rest = self._rest[0], self._rest[1:]
                if character in _NAMED:
                    yield Key(_NAMED[character])
                elif character.isprintable():
                    yield Key(character)


def keyboard(descriptor: int) -> bool:
    """Whether a person can press keys there: a terminal, and this process in its foreground."""
    try:
        return os.isatty(descriptor) and os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False


@contextlib.contextmanager
def single_keys(descriptor: int) -> Iterator[None]:
    """Have the terminal pass on every key at once, without showing it, and put it back on every way out.

    Ctrl-C still interrupts. Ctrl-Z and Ctrl-\\ do nothing: a console that is put aside has no key that stops the arm.
    Ctrl-S does nothing either: it would stop the screen, and with it whoever writes on it.
    """
    before = termios.tcgetattr(descriptor)
    after: list[Any] = [*before[:6], list(before[6])]
    after[0] &= ~(termios.IXON | termios.ICRNL)
    after[3] &= ~(termios.ICANON | termios.ECHO)
    off = os.fpathconf(descriptor, "PC_VDISABLE").to_bytes()
    for key in (termios.VSUSP, termios.VQUIT):
        after[6][key] = off
    after[6][termios.VMIN], after[6][termios.VTIME] = 1, 0
    with _ignored(signal.SIGTSTP):
        try:
            termios.tcsetattr(descriptor, termios.TCSANOW, after)
            with contextlib.suppress(OSError):  # it may be open for reading only
                os.write(descriptor, _PASTE_ON)
            yield
        finally:
            # It may have gone, and must not be waited for: TCSADRAIN would, while nobody reads what was written.
            with contextlib.suppress(OSError):
                os.write(descriptor, _PASTE_OFF)
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(descriptor, termios.TCSANOW, before)


@contextlib.contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


class Listener:
    """Reads keys in a thread of its own, so that no drawing and no waiting keeps one from being heard.

    Args:
        descriptor: of the terminal.
        pressed: called with every key. alive: called at least every `WAIT_S`. gone: called when the terminal is.
    """

    def __init__(
        self, descriptor: int, pressed: Callable[[Key], None], alive: Callable[[], None], gone: Callable[[], None]
    ) -> None:
        self._descriptor, self._pressed, self._alive, self._gone = descriptor, pressed, alive, gone
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="keys", daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(2.0)

    def _listen(self) -> None:
        parser = KeyParser()
        while not self._ended.is_set():
            self._alive()
            ready = select.select([self._descriptor], [], [], WAIT_S)[0]
            try:
                data = os.read(self._descriptor, 4096) if ready else b""
            except OSError:
                data = b""
            if ready and not data:
                self._gone()
                return
            for key in parser.feed(data) if ready else parser.idle():
                self._pressed(key)
