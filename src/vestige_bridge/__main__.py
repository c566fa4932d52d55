"""The command line: arguments and environment in, exit status out."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import textwrap
from collections.abc import Mapping

from dotenv import dotenv_values

from vestige_bridge import __version__
from vestige_bridge.client import Client, parse_bridge_url
from vestige_bridge.errors import SettingsError
from vestige_bridge.fetch import TIMEOUT_SECONDS
from vestige_bridge.settings import Settings, describe

_DOCTOR = """\
The layers are settings, address, bridge, token, MCP endpoint, Vestige and a read. It asks through the bridge that
runs and starts no second Vestige; only where no bridge runs does it open a session of its own, and ends it again.

  vestige-bridge doctor
  VESTIGE_AUTH_TOKEN=… vestige-bridge doctor --url https://vestige.example.com

The exit status is 0 when all is well, otherwise 1."""

_WHERE = "where the bridge answers, such as http://host:8000; without it the settings of this machine say"


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit status: 0; 1 when the bridge could not serve, or the doctor found something; 2 for
        mistakes in the arguments or the settings; 130 when the person ended it.
    """
    options = _parser().parse_args(arguments)
    environ = {**_dotenv(), **os.environ}
    try:
        return _run(options, environ)
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    # A command imports what it needs.
    if options.command == "doctor":
        return _ask(options, environ)
    from vestige_bridge import server  # noqa: PLC0415

    return server.serve(Settings.from_environ(environ))


def _ask(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Runs a command that asks a running bridge."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        status = _doctor(options, environ)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read has enough; at its exit Python would flush what is left, and stumble.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _doctor(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if options.quiet:
        try:
            return 0 if Client.without_token(environ, options.url, options.timeout).healthy() else 1
        except SettingsError:
            return 1
    from vestige_bridge import doctor  # noqa: PLC0415

    return doctor.run(environ, url=options.url, timeout_seconds=options.timeout, as_json=options.json)


def _dotenv() -> dict[str, str]:
    """The variables of the file ``.env`` in the working directory, if there is one."""
    return {name: value for name, value in dotenv_values(".env").items() if value is not None}


def _parser() -> argparse.ArgumentParser:
    lines = []
    for variable, default, help_text in describe():
        lines.append(f"  {variable} (default: {default or 'none'})")
        lines.append(textwrap.fill(help_text, 78, initial_indent="      ", subsequent_indent="      "))
    parser = argparse.ArgumentParser(
        prog="vestige-bridge",
        description="An authenticating reverse proxy that lets any number of MCP clients share one Vestige.",
        epilog="Settings come from the environment, then from a file .env:\n\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("serve", help="run the bridge (the default)")
    _add_doctor(commands)
    return parser


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = _add(commands, "doctor", "walk from the settings to Vestige and name what fails", _DOCTOR)
    doctor.add_argument(
        "--timeout",
        type=_seconds,
        default=TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="how long a connection, and then each answer, may take (default: 10)",
    )
    form = doctor.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document instead of the lines")
    form.add_argument("--quiet", action="store_true", help="one deep health check, told by the exit status alone")


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, more: str
) -> argparse.ArgumentParser:
    """A command that asks a running bridge."""
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"{more}\n\nThe token comes from VESTIGE_AUTH_TOKEN, or is the first of VESTIGE_AUTH_TOKEN_FILE.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--url", type=_bridge_url, help=_WHERE)
    return command


def _bridge_url(value: str) -> str:
    try:
        return parse_bridge_url(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is no address such as http://host:8000") from None


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 600:
        raise argparse.ArgumentTypeError(f"{value!r} is no number of seconds up to 600")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
