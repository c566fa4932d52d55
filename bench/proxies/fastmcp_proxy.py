"""FastMCP's own proxy; stateless, it accepts the same requests as the others.

usage: fastmcp_proxy.py UPSTREAM_URL PORT stateless|sessions
"""

from __future__ import annotations

import sys

from fastmcp.server import create_proxy

if __name__ == "__main__":
    create_proxy(sys.argv[1]).run(
        transport="http",
        host="127.0.0.1",
        port=int(sys.argv[2]),
        stateless_http=sys.argv[3] == "stateless",
        log_level="warning",
        show_banner=False,
    )
