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
from vestige_bridge.fetch import TIMEOUT_SECONDS, ClientError
from vestige_bridge.settings import Settings, describe

_CALL = """\
Each argument is key=value and gets the type that the tool's schema gives it; arrays and objects are written as JSON,
and a.b=1 sets a member of an object. key=- takes the value from standard input, - alone takes all arguments from
there as a JSON object.

  vestige-bridge call recall query='what is blue'
  vestige-bridge call create_entities entities='[{"name": "sky", "entityType": "fact", "observations": []}]'
  vestige-bridge call recall --json '{"query": "sky", "limit": 5}' | jq .structuredContent
  git log -1 --format=%B | vestige-bridge call smart_ingest content=-

The exit status is 0; 1 when the tool or the call failed; 2 when the arguments are not what the tool takes."""

_TOOLS = """\
A table on a terminal, and the JSON in which Vestige announces its tools on a pipe.

  vestige-bridge tools
  vestige-bridge tools | jq -r '.[].name'"""

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
        The exit status: 0; 1 when the bridge could not serve, the doctor found something or a call failed; 2 for
        mistakes in the arguments or the settings; 130 when the person ended it.
    """
    options = _options(arguments)
    environ = {**_dotenv(), **os.environ}
    try:
        return _run(options, environ)
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    # A command imports what it needs.
    if options.command in ("doctor", "tools", "call"):
        return _ask(options, environ)
    from vestige_bridge import server  # noqa: PLC0415

    return server.serve(Settings.from_environ(environ))


def _ask(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Runs a command that asks a running bridge."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        status = _doctor(options, environ) if options.command == "doctor" else _tools(options, environ)
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


def _tools(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from vestige_bridge import arguments, terminal, tools  # noqa: PLC0415

    client = Client.from_environ(environ, options.url)
    try:
        if options.command == "tools":
            tools.print_tools(client, as_json=options.json)
            return 0
        return 0 if tools.call(client, options.tool, options.arguments, options.json) else 1
    except arguments.UsageError as error:
        print(terminal.shown(str(error)), file=sys.stderr)
        return 2
    except ClientError as error:
        print(f"{client.url}: {terminal.shown(str(error))}", file=sys.stderr)
        if getattr(error, "may_have_run", False):
            print("Vestige may have run it all the same.", file=sys.stderr)
        print("`vestige-bridge doctor` says more.", file=sys.stderr)
        return 1


def _dotenv() -> dict[str, str]:
    """The variables of the file ``.env`` in the working directory, if there is one."""
    return {name: value for name, value in dotenv_values(".env").items() if value is not None}


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, more = parser.parse_known_args(arguments)
    # argparse gives up on the arguments of a tool where an option stands among them.
    if more and (options.command != "call" or any(word.startswith("-") and word != "-" for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        options.arguments += more
    return options


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
    _add_tools(commands)
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


def _add_tools(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    tools = _add(commands, "tools", "list what Vestige can do", _TOOLS)
    tools.add_argument("--json", action="store_true", help="JSON on a terminal, too")
    call = _add(commands, "call", "call a tool of Vestige", _CALL)
    call.add_argument("tool", help="the tool's name, as `vestige-bridge tools` shows it")
    call.add_argument("arguments", nargs="*", metavar="key=value", help="an argument of the tool")
    call.add_argument("--json", metavar="OBJECT", help="all arguments in one JSON object; - for standard input")


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
