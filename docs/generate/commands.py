"""The command line reference, from the parsers themselves."""

import argparse
import re

from artent import cli


def parsers():
    """(the parser of `artent`, {command: (its parser, its one line)}): the order is the parser's."""
    parser = cli._parser()
    group = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    lines = {choice.dest: choice.help for choice in group._choices_actions}
    return parser, {name: (command, lines[name]) for name, command in group.choices.items()}


def actions(parser):
    """What a parser takes, but for its help and its commands."""
    hidden = (argparse._HelpAction, argparse._SubParsersAction)
    return [a for a in parser._actions if not isinstance(a, hidden) and a.help != argparse.SUPPRESS]


def markdown():
    parser, commands = parsers()
    parts = [f"{parser.description}\n", _table(parser)]
    for name, (command, line) in commands.items():
        parts += [f"## artent {name}\n", f"{_sentence(line)}.\n", f"```text\n{_usage(command)}\n```\n", _table(command)]
    return "\n".join(parts)


def _table(parser):
    rows = [f"| {_cell(_names(action, parser))} | {_cell(_help(action, parser))} |" for action in actions(parser)]
    return "\n".join(["| argument | |", "|---|---|", *rows, ""])


def _names(action, parser):
    formatter = parser._get_formatter()
    if not action.option_strings:
        return f"`{formatter._format_args(action, formatter._get_default_metavar_for_positional(action))}`"
    if action.nargs == 0:
        return ", ".join(f"`{option}`" for option in action.option_strings)
    value = formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
    return ", ".join(f"`{option} {value}`" for option in action.option_strings)


def _help(action, parser):
    """The help line with its defaults put in, and whether the argument is needed or may be repeated."""
    said = parser._get_formatter()._expand_help(action) if action.help else ""
    if isinstance(action, argparse._AppendAction):
        said += "; may be repeated"
    if action.option_strings and action.required:
        said += " (required)"
    return re.sub(r"(?<![\w-])--[a-z][\w-]*", r"`\g<0>`", said)


def _usage(parser):
    positional = [_names(action, parser).strip("`") for action in actions(parser) if not action.option_strings]
    return " ".join([parser.prog, *positional, "[options]"])


def _sentence(text):
    return text[:1].upper() + text[1:]


def _cell(text):
    return text.replace("|", "\\|").replace("<", "&lt;")
