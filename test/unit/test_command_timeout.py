"""The command timeout: one hold a silence, none before the first command, none after the driver let go."""

from __future__ import annotations

import pytest

from molmoact2_ros.execution.command_timeout import CommandTimeout


class Clock:
    def __init__(self) -> None:
        self.ns = 5_000_000_000

    def __call__(self) -> int:
        return self.ns

    def wait(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


def test_silence_after_a_command_expires_once_until_the_next_command() -> None:
    clock = Clock()
    timeout = CommandTimeout(clock, 0.2)
    timeout.fed()
    clock.wait(0.2)
    assert not timeout.expired()
    clock.wait(0.001)
    assert timeout.expired()
    assert timeout.holding
    clock.wait(10.0)
    assert not timeout.expired()
    timeout.fed()
    assert not timeout.holding
    clock.wait(0.3)
    assert timeout.expired()
    assert timeout.trips == 2


def test_steady_commands_never_expire() -> None:
    clock = Clock()
    timeout = CommandTimeout(clock)
    for _ in range(100):
        timeout.fed()
        clock.wait(0.19)
        assert not timeout.expired()
    assert timeout.trips == 0


def test_nothing_expires_before_the_first_command_nor_after_the_driver_let_go() -> None:
    clock = Clock()
    timeout = CommandTimeout(clock)
    clock.wait(1.0)
    assert not timeout.expired()
    timeout.fed()
    timeout.forget()
    clock.wait(1.0)
    assert not timeout.expired()
    assert not timeout.holding


def test_a_silence_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0 s, got 0"):
        CommandTimeout(Clock(), 0.0)
