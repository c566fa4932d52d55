"""Runs a command once a port of this machine accepts connections.

usage: python dev/when_open.py PORT COMMAND [ARGUMENT…]
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time


def main(port: str, *command: str) -> None:
    """Waits for the port, then replaces this process with the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    while True:
        try:
            socket.create_connection(("127.0.0.1", int(port)), timeout=1).close()
            break
        except OSError:
            time.sleep(0.05)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
