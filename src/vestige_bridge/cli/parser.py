"""The command line: arguments and environment in, exit status out."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from vestige_bridge.cli.bridge_client import Client
from vestige_bridge.cli.client_catalog import BY_KEY, TOKEN_VARIABLE
from vestige_bridge.cli.environment import read_environ
from vestige_bridge.cli.http_client import TIMEOUT_SECONDS, ClientError, Refused
from vestige_bridge.cli.terminal import shown
from vestige_bridge.errors import SettingsError
from vestige_bridge.settings import Settings, describe, parse_bridge_url, unknown_settings

_CALL = """\
Write each argument as key=value. The value gets the type that the tool's schema gives it; write arrays and objects as
JSON. a.b=1 sets a member of an object. key=- reads the value from standard input. - alone reads all arguments from
standard input, as a JSON object. recall and smart_ingest are tools of Vestige, create_entities is one of server-memory.

  vestige-bridge call recall --help
  vestige-bridge call recall query='what is blue'
  vestige-bridge call create_entities entities='[{"name": "sky", "entityType": "fact", "observations": ["blue"]}]'
  vestige-bridge call recall --json '{"query": "sky", "limit": 5}' | jq .structuredContent
  git log -1 --format=%B | vestige-bridge call smart_ingest content=-

The exit status is 0; 1 if the tool returned an error or no result arrived; 2 if the arguments or the settings are
wrong; 130 after Ctrl-C."""

_TOOLS = """\
On a terminal, it prints a table. On a pipe, it prints the tools as JSON, as Vestige returns them. With NAME, it prints
one tool and its arguments with their types and descriptions.

  vestige-bridge tools
  vestige-bridge tools recall
  vestige-bridge tools | jq -r '.[].name'"""

_DOCTOR = """\
The layers are settings, address, bridge, token, upstream, Vestige and read; with OAuth also
provider. The doctor sends its checks through the running bridge, except two pings to upstream. If no bridge
runs at the address, it opens a session with upstream itself, which starts a Vestige process behind
supergateway, and ends it.

  vestige-bridge doctor
  VESTIGE_AUTH_TOKEN=… VESTIGE_AUTH_TOKEN_FILE= vestige-bridge doctor \\
    --url https://vestige.example.com
  ACCESS_TOKEN=… vestige-bridge doctor --token-env ACCESS_TOKEN

The exit status is 0 if no layer fails, otherwise 1."""

_CONNECT = """\
It prints the commands to run, or a configuration file and the text to add to it. It changes no file. Without CLIENT, it
lists the clients. The printed text never contains the token: it contains the name of the variable or of the file that
holds it, or makes the client ask for it.

  vestige-bridge connect claude-code
  vestige-bridge connect codex --url https://vestige.example.com --token-env TEAM_TOKEN"""

_STDIO = """\
For clients that support only stdio servers. It forwards each message to a running bridge, and exits when the client
closes standard input. It prints problems to standard error.

  vestige-bridge stdio --url https://vestige.example.com"""

_MAKE = """\
It prints a new token and the entry for it. Store the token: it is not printed again. Add the entry to the token file of
the bridge, the one in VESTIGE_AUTH_TOKEN_FILE. The name of that file must end in .toml. The entry contains the hash of
the token, not the token.

  vestige-bridge token new nightly-job --read-only --expires 90d
  vestige-bridge token new assistant --tools recall 'memory_*' --rate 120"""

SHELLS = ("bash", "fish", "zsh")
_COMPLETIONS = Path(__file__).parent / "completions"

_WHERE = "the address of the bridge, such as http://host:8000 (default: from the settings of this machine)"


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit status: 0; 1 if the bridge could not serve, a layer of the doctor failed, or a call failed; 2 for
        mistakes in the arguments or the settings; 130 after Ctrl-C.
    """
    _open_standard_streams()
    options = _options(arguments)
    try:
        return _run(options, read_environ(os.environ, Path(".env")))
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    # Each command imports only what it needs.
    if options.command in ("doctor", "tools", "call", "connect"):
        return _ask(options, environ)
    if options.command == "completion":
        print((_COMPLETIONS / options.shell).read_text(), end="")
        return 0
    if options.command == "stdio":
        return _stdio(options, environ)
    if options.command == "token":
        return _new_token(options)

    from vestige_bridge.server import process  # noqa: PLC0415

    return process.serve(Settings.from_environ(environ), unknown_settings(environ))


def _stdio(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from vestige_bridge.cli import stdio  # noqa: PLC0415

    try:
        return stdio.serve(Client.from_environ(environ, options.url))
    except KeyboardInterrupt:
        return 130


def _new_token(options: argparse.Namespace) -> int:
    from vestige_bridge.cli import new_token  # noqa: PLC0415

    try:
        new_token.print_new_token(options)
    except new_token.Mistake as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _ask(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Runs a command that sends requests to a running bridge."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        run = {"doctor": _doctor, "connect": _connect}.get(options.command, _tools)
        status = run(options, environ)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader closed the pipe. Python would flush the rest at its exit, and fail.
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
    from vestige_bridge.cli import doctor  # noqa: PLC0415

    return doctor.run(
        environ,
        url=options.url,
        timeout_seconds=options.timeout,
        as_json=options.json,
        token_env=options.token_env,
    )


def _connect(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from vestige_bridge.cli import connect  # noqa: PLC0415

    if options.client is None:
        connect.print_clients()
    else:
        url = Client.without_token(environ, options.url, TIMEOUT_SECONDS).url
        connect.print_client(options.client, url, options.token_env)
    return 0


def _tools(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from vestige_bridge.cli import tool_arguments, tools  # noqa: PLC0415

    client = Client.from_environ(environ, options.url)
    try:
        if options.command == "tools" and options.tool is None:
            tools.print_tools(client, as_json=options.json)
            return 0
        if options.command == "tools" or options.help:
            as_json = options.command == "tools" and (options.json or not sys.stdout.isatty())
            tools.print_tool(client, options.tool, as_json=as_json)
            return 0
        return 0 if tools.call(client, options.tool, options.arguments, options.json) else 1
    except tool_arguments.UsageError as error:
        print(shown(str(error)), file=sys.stderr)
        return 2
    except ClientError as error:
        print(f"{client.url}: {_reason(error, client)}", file=sys.stderr)
        if error.may_have_run:
            print("Vestige may have run the call.", file=sys.stderr)
        print("Run `vestige-bridge doctor` to find the cause.", file=sys.stderr)
        return 1


def _open_standard_streams() -> None:
    """Opens standard streams that the parent process closed, and replaces characters that a stream cannot encode."""
    # Otherwise a socket could get the number of a closed stream, and output for the stream would be written to it.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _reason(error: ClientError, client: Client) -> str:
    """Why there is no result. Without a token, the text names the variables for one instead of the HTTP header."""
    if isinstance(error, Refused) and error.status == 401 and not client.token:
        return "The bridge requires a token: set VESTIGE_AUTH_TOKEN to one that the bridge accepts."
    return shown(str(error))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = build_parser()
    options, more = parser.parse_known_args(arguments)
    if options.command == "call" and options.tool is None:
        if options.help:
            options.parser.print_help()
            parser.exit()
        options.parser.error("TOOL is missing; `vestige-bridge tools` lists the tools")
    # argparse does not collect the arguments of a tool if there is an option between them.
    if more and (options.command != "call" or any(word.startswith("-") and word != "-" for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        options.arguments += more
    return options


class _PrintVersion(argparse.Action):
    """Prints the version, and reads it only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from vestige_bridge import __version__  # noqa: PLC0415

        print(f"{parser.prog} {__version__}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line. The completions for shells are generated from it."""
    lines = []
    for variable, default, help_text in describe():
        lines.append(f"  {variable} (default: {default or 'none'})")
        lines.append(textwrap.fill(help_text, 78, initial_indent="      ", subsequent_indent="      "))
    parser = argparse.ArgumentParser(
        prog="vestige-bridge",
        description="An authenticating reverse proxy that lets any number of MCP clients share one Vestige.",
        epilog="Settings are environment variables, or lines of the file .env in the working directory.\n"
        "The environment overrides the file:\n\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("serve", help="run the bridge (the default)")
    _add_doctor(commands)
    _add_tools(commands)
    connect = _add(commands, "connect", "print how to connect an MCP client", _CONNECT, token=False)
    connect.add_argument(
        "client", nargs="?", choices=list(BY_KEY), metavar="CLIENT", help="the client; without it, a list of clients"
    )
    connect.add_argument(
        "--token-env",
        type=_variable,
        default=TOKEN_VARIABLE,
        metavar="NAME",
        help=f"the environment variable that holds the token (default: {TOKEN_VARIABLE})",
    )
    _add(commands, "stdio", "run an MCP stdio server that forwards to the bridge", _STDIO)
    _add_token(commands)
    completion = commands.add_parser("completion", help="print the completion script for a shell")
    completion.add_argument("shell", choices=SHELLS)
    return parser


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = _add(commands, "doctor", "check each layer from the settings to Vestige", _DOCTOR)
    doctor.add_argument(
        "--timeout",
        type=_seconds,
        default=TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="how long a connection may take, and then each answer (default: 10)",
    )
    doctor.add_argument(
        "--token-env",
        type=_variable,
        metavar="NAME",
        help="the environment variable that holds the token to check, such as an OAuth access token",
    )
    form = doctor.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON document instead of lines")
    form.add_argument(
        "--quiet", action="store_true", help="send one GET /health and print nothing; the exit status has the result"
    )


def _add_tools(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    tools = _add(commands, "tools", "list the tools of Vestige", _TOOLS)
    tools.add_argument("tool", nargs="?", metavar="NAME", help="one tool, with its arguments; without it, all tools")
    tools.add_argument("--json", action="store_true", help="print JSON on a terminal too")
    call = _add(commands, "call", "call a tool of Vestige", _CALL, own_help=True)
    call.add_argument("-h", "--help", action="store_true", help="show this help, or the arguments of TOOL")
    call.add_argument("tool", nargs="?", metavar="TOOL", help="the name of the tool; `vestige-bridge tools` lists them")
    call.add_argument("arguments", nargs="*", metavar="key=value", help="an argument of the tool")
    call.add_argument(
        "--json", metavar="OBJECT", help="all arguments as one JSON object; - reads it from standard input"
    )
    call.set_defaults(parser=call)


def _add_token(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    token = commands.add_parser("token", help="make a token and its entry for a token file")
    actions = token.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser(
        "new",
        usage="%(prog)s NAME [options]",
        help="make a token",
        description="Make a token and its entry for a token file.",
        epilog=_MAKE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    new.add_argument("name", metavar="NAME", help="the name of the token in logs and metrics")
    new.add_argument("--read-only", action="store_true", help="the token can only read")
    new.add_argument(
        "--tools",
        action="extend",
        nargs="+",
        metavar="TOOL",
        help="the only tools that the token can list and call; * matches any characters; write NAME before this option",
    )
    new.add_argument("--no-resources", action="store_true", help="the token cannot use resources and prompts")
    new.add_argument(
        "--expires",
        type=_expiry,
        metavar="TIME",
        help="when the token expires: 2027-01-31 (0:00 UTC), 2027-01-31T12:00:00Z, or a time from now: 90d, 12h or 30m",
    )
    new.add_argument(
        "--max-in-flight", type=int, metavar="COUNT", help="how many requests and notifications may be in flight"
    )
    new.add_argument("--rate", type=int, metavar="COUNT", help="how many tool calls are allowed in a minute")


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    more: str,
    *,
    token: bool = True,
    own_help: bool = False,
) -> argparse.ArgumentParser:
    """Adds a command that uses a running bridge.

    Parameters:
        commands: the commands.
        name: the name of the command.
        summary: what it does, in one line.
        more: the text after the options.
        token: whether it sends a token.
        own_help: whether it defines ``--help`` itself.
    """
    where = (
        "\n\nThe token is VESTIGE_AUTH_TOKEN or, if that is not set, the first token in VESTIGE_AUTH_TOKEN_FILE\n"
        "that is there in plain text, not as a hash, and has not expired. Do not set both."
    )
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=more + (where if token else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=not own_help,
    )
    command.add_argument("--url", type=_bridge_url, help=_WHERE)
    return command


def _bridge_url(value: str) -> str:
    try:
        return parse_bridge_url(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not an address such as http://host:8000") from None


def _expiry(value: str) -> object:
    from vestige_bridge.cli.new_token import parse_expiry  # noqa: PLC0415

    return parse_expiry(value)


def _variable(value: str) -> str:
    if not (value.isascii() and value.isidentifier()):
        raise argparse.ArgumentTypeError(f"{value!r} is not the name of an environment variable")
    return value


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 600:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds greater than 0 and at most 600")
    return seconds
