"""The console without a terminal and without ROS: which keys ask for what, what is shown, and what a space does."""

from __future__ import annotations

import os
import signal
import string
import sys
import termios
import time
from pathlib import Path

import pytest
from pseudo_terminal import PseudoTerminal

from molmoact2_ros.bringup.console import LET_GO, Console, same
from molmoact2_ros.bringup.keys import BACKSPACE, ENTER, ESCAPE, PASTED, Key, KeyParser
from molmoact2_ros.execution.supervisor import State

STOP = [{"ask": "stop"}]
NODES = ("so101_driver", "camera", "policy", "executor", "recorder", "operator")
ASKS = ("arm", "disarm", "start", "reset", "take", "give", "task", "record", "end", "label")


def state(executor: str = "DISARMED", **changed: object) -> dict[str, object]:
    said = {name: (0, "fine") for name in NODES if name != "operator"}
    return {
        "type": "state",
        "executor": executor,
        "reason": "so it is",
        "chunk_age_ms": "",
        "latency_ms": "",
        "chunks": True,
        "task": "pick it up",
        "stops": [],
        "driver": (0, "connected"),
        "said": said,
        "ready": list(ASKS),
        **changed,
    }


def console(executor: str = "DISARMED", **changed: object) -> Console:
    made = Console("so101", NODES, records=True)
    made.hear(state(executor, **changed))
    return made


def press(made: Console, keys: str) -> list[dict[str, object]]:
    return [request for key in KeyParser().feed(keys.encode()) for request in made.key(key)]


@pytest.mark.parametrize(
    ("key", "request_"),
    [
        ("a", {"ask": "arm"}),
        ("A", {"ask": "arm"}),
        ("d", {"ask": "disarm"}),
        ("s", {"ask": "start"}),
        ("r", {"ask": "reset"}),
        ("e", {"ask": "record"}),
        ("tput it down\r", {"ask": "task", "text": "put it down"}),
        ("tpux\x7ft it_down\n", {"ask": "task", "text": "put it down"}),
        ("lg", {"ask": "label", "success": True}),
        ("lb", {"ask": "label", "success": False}),
    ],
)
def test_each_key_asks_for_one_thing(key: str, request_: dict[str, object]) -> None:
    assert press(console(), key) == [request_]


def test_a_person_takes_over_and_gives_back_where_there_is_something_to_do_it_with() -> None:
    alone = console("HOLDING")
    assert press(alone, "h") == press(alone, "p") == [] and "--teleop" in alone.answer[1]
    led = Console("so101", (*NODES, "teleop"))
    led.hear(state("TRACKING", drives="policy", handover="policy"))
    assert press(led, "h") == [{"ask": "take"}] and press(led, "p") == [{"ask": "give"}]
    led.hear(state("HOLDING", drives="nobody", handover="teleop: holding"))
    shown = {row.name: row.text for row in led.rows()}
    assert "teleop: holding" in shown["drives"] and shown["next"] == led.advice()
    assert "h takes over anew, p gives" in led.advice()


def test_other_keys_ask_for_nothing() -> None:
    others = set(string.printable) - set("adsretlADSRETL ")
    for key in sorted(others):
        assert press(console("TRACKING"), key) == [], key
    assert press(console(), "lx") == press(console(), "t\r\x1b") == []


@pytest.mark.parametrize("before", ["", "l", "t", "tput the", "a", "r", "aaadsrre", "\x1b[A", "\x1b"], ids=repr)
@pytest.mark.parametrize("executor", [s.value for s in State if s.value not in LET_GO] + [""])
def test_a_space_stops_at_any_moment_at_which_the_arm_may_move(before: str, executor: str) -> None:
    made = console(executor)
    press(made, before)
    assert press(made, " ") == STOP


def test_a_space_stops_before_anything_was_heard_and_while_everything_is_waited_for() -> None:
    assert press(Console("so101", NODES), " ") == STOP
    made = console()
    assert [request["ask"] for request in press(made, "adsretgo\rlg")] == [*ASKS[:4], "record", "task", "label"]
    assert press(made, "adsr") == []  # each once; the answers have not come
    assert press(made, " ") == STOP


@pytest.mark.parametrize("before", ["", "l", "tput", "q"])
@pytest.mark.parametrize("executor", ["TRACKING", "DISARMED", "UNCONFIGURED", ""])
def test_a_space_stops_while_the_nodes_are_ended_and_nothing_else_is_asked_for(before: str, executor: str) -> None:
    made = console(executor)
    press(made, before)
    made.ending = True
    assert press(made, "adsrelg\r") == []
    assert press(made, " ") == STOP  # the driver may be parking the arm
    assert made.plain() == [made.advice()] and made.advice().startswith("ending: ")


def test_a_space_in_a_task_stops_a_moving_arm_and_its_letters_become_no_keys() -> None:
    made = console("TRACKING")
    assert press(made, "tgrab a red") == STOP * 2
    made.hear(state("ESTOPPED", stops=["this console"]))
    assert press(made, " rag\r") == [{"ask": "task", "text": "grab a red rag"}]
    made = console("DISARMED")
    assert press(made, "tgrab a red rag\r") == [{"ask": "task", "text": "grab a red rag"}]


def test_what_is_pasted_presses_no_keys() -> None:
    made = console()
    assert press(made, "\x1b[200~ardent r a s\x1b[201~") == []
    assert "paste" in made.answer[1]
    assert press(made, "t\x1b[200~put it\n down\x1b[201~!\r") == [{"ask": "task", "text": "put it down!"}]


@pytest.mark.parametrize("pieces", [1, 2, 3, 7])
def test_arrows_and_function_keys_are_no_letters_however_they_come(pieces: int) -> None:
    data = b"\x1b[A\x1bOs\x1b[15~\x1ba\x1b[1;5Dx\x1b[200~a b\x1b[201~\xc3\xa9\r"
    parser, found = KeyParser(), []
    for i in range(0, len(data), pieces):
        found += parser.feed(data[i : i + pieces])
    assert found == [Key("x"), Key(PASTED, "a b"), Key("\u00e9"), Key(ENTER)]
    assert parser.feed(b"\x1b") == [] and parser.idle() == [Key(ESCAPE)]
    assert parser.feed(b"a\x08") == [Key("a"), Key(BACKSPACE)]


def test_answers_are_shown_and_open_the_way_for_the_next_request() -> None:
    made = console()
    press(made, "a")
    assert press(made, "a") == []
    made.hear({"type": "answer", "ask": "arm", "ok": False, "message": "cannot arm: stale"})
    assert made.rows()[-2].text == "arming: cannot arm: stale"
    assert press(made, "a") == [{"ask": "arm"}]


def test_recording_follows_the_recorder_and_its_answers() -> None:
    made = console()
    assert press(made, "e") == [{"ask": "record"}]
    made.hear({"type": "answer", "ask": "record", "ok": True, "message": "bags/episode_0001"})
    assert press(made, "e") == [{"ask": "end"}]
    recording = {"recorder": (0, "recording episode_0001")}
    made.hear(state(said=recording))
    made.hear({"type": "answer", "ask": "end", "ok": True, "message": "bags/episode_0001"})
    made.hear(state(said=recording))  # of before: the recorder says it once a second
    assert press(made, "e") == [{"ask": "record"}]
    unrecorded = Console("so101", NODES)
    assert press(unrecorded, "e") == press(unrecorded, "lg") == [] and "--record" in unrecorded.answer[1]


def test_the_task_of_the_command_line_is_told_once_and_not_before_the_policy_is_there() -> None:
    made = Console("so101", NODES, task="pick it up")
    assert made.hear(state(said={"executor": (0, "")})) == []
    assert made.hear(state()) == [{"ask": "task", "text": "pick it up"}]
    made.hear({"type": "answer", "ask": "task", "ok": False, "message": "no"})
    assert made.hear(state()) == []
    assert press(made, "t\r") == [{"ask": "task", "text": "pick it up"}]  # Enter alone tells the last one


SAID = {name: (0, "fine") for name in NODES[:-1]}


@pytest.mark.parametrize(
    ("heard", "words"),
    [
        (state(""), "the executor is silent"),
        (state(ready=[], said={"camera": (0, "")}), "so101_driver, policy, executor, recorder not there yet"),
        (state("ESTOPPED", stops=["this console"]), "r resets"),
        (state("ESTOPPED", stops=["/so101/pendant", "this console"]), "/so101/pendant must let go"),
        (state("FAULT"), "look at the arm, then d"),
        (state(driver=(1, "no serial port")), "no serial port"),
        (state(said={**SAID, "policy": (1, "no image of front")}), "mend what the policy names"),
        (state(task=""), "t tells a task"),
        (state(chunks=False), "no usable chunk"),
        (state(), "a arms"),
        (state("HOLDING", task=""), "t tells a task"),
        (state("TRACKING"), "SPACE stops"),
        (state("STOPPING"), "comes to rest"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_says_what_to_do_next(heard: dict[str, object], words: str) -> None:
    made = Console("so101", NODES)
    made.hear(heard)
    assert words in made.advice()
    assert any(words in row.text for row in made.rows())


def test_plain_lines_differ_by_words_and_not_by_figures() -> None:
    made = console(said={**SAID, "camera": (2, "front silent for 1.2 s")})
    lines = made.plain()
    assert "executor DISARMED: so it is" in lines and "camera: front silent for 1.2 s" in lines
    assert same("front silent for 1.2 s") == same("front silent for 13 s") != same("front is black")


WAITS = """
import signal, sys, time
sys.path.insert(0, {root!r})
from molmoact2_ros.bringup.keys import Listener, keyboard, single_keys
from molmoact2_ros.bringup.session import TerminatedError, orderly_signals
assert keyboard(0)
with orderly_signals(), single_keys(0), Listener(0, lambda key: print("key", key.name), lambda: None, lambda: None):
    print("ready", flush=True)
    {does}
"""


@pytest.mark.parametrize("how", ["return", "exception", "SIGTERM", "SIGINT", "SIGHUP"])
def test_the_terminal_is_as_before_on_every_way_out(how: str) -> None:
    does = {"return": "pass", "exception": "1 / 0"}.get(how, "time.sleep(60)")
    script = WAITS.format(root=str(Path(__file__).parents[2]), does=does)
    with PseudoTerminal([sys.executable, "-c", script]) as terminal:
        deadline = time.monotonic() + 20.0
        while "ready" not in terminal.text and time.monotonic() < deadline:
            time.sleep(0.01)
        if how.startswith("SIG"):
            assert not terminal.settings()[3] & (termios.ECHO | termios.ICANON)
            terminal.press("\x1a\x1c\x13x")  # Ctrl-Z, Ctrl-\ and Ctrl-S do nothing
            while "key x" not in terminal.text and time.monotonic() < deadline:
                time.sleep(0.01)
            assert "key x" in terminal.text
            os.kill(terminal.popen.pid, getattr(signal, how))
        terminal.popen.wait(20.0)
        assert terminal.settings() == terminal.before
