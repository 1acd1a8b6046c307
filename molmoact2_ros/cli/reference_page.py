"""docs/reference/cli.md, from the parsers of the commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

INTRODUCTION = """# Commands

Made by `make pages` from the commands themselves; do not edit.

Exit status: 0 done, 1 something failed while it ran, 2 what was asked for cannot be done (one line says why), 130 ended
by Ctrl-C.
"""


def page() -> str:
    """The page, Markdown."""
    from molmoact2_ros.cli import parser

    return "\n".join([INTRODUCTION, *_sections(parser(), 2)])


def _sections(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    for name, inner in _commands(parser):
        formatter = argparse.HelpFormatter(inner.prog, width=100, max_help_position=34)
        formatter.add_usage(inner.usage, inner._actions, inner._mutually_exclusive_groups)
        formatter.add_text(inner.description)
        for group in inner._action_groups:
            formatter.start_section(group.title)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        yield f"{'#' * level} {inner.prog}\n"
        if about := _about(parser, name):
            yield f"{about[0].upper()}{about[1:]}.\n"
        yield f"```text\n{formatter.format_help().rstrip()}\n```\n"
        yield from _sections(inner, level + 1)


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _about(parser: argparse.ArgumentParser, name: str) -> str:
    """What the list of commands says of one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                if choice.dest == name:
                    return str(choice.help or "")
    return ""
