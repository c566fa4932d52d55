"""Debian's proxies in front of the bridge, which send the requests of all clients over the same few connections."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from harness import free_port, until

FRONTS = ("HAProxy", "nginx", "nginx that streams requests")

_HAPROXY = """
global
    nbthread 1
    maxconn 1000
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend strangers
    bind 127.0.0.1:{HAProxy}
    default_backend bridge
backend bridge
    http-reuse always
    server bridge 127.0.0.1:{bridge}
"""

_NGINX = """
daemon off;
master_process off;
pid nginx.pid;
error_log /dev/null;
events {{ worker_connections 1000; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    client_max_body_size 0;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Upgrade $http_upgrade;
    proxy_buffering off;
    upstream bridge {{
        server 127.0.0.1:{bridge};
        keepalive 32;
    }}
    server {{
        listen 127.0.0.1:{nginx};
        location / {{ proxy_pass http://bridge; }}
    }}
    server {{
        listen 127.0.0.1:{nginx that streams requests};
        location / {{
            proxy_pass http://bridge;
            proxy_request_buffering off;
        }}
    }}
}}
"""


@asynccontextmanager
async def fronts(folder: Path, bridge: int) -> AsyncIterator[dict[str, int]]:
    """Runs the proxies.

    Parameters:
        folder: the folder of their configuration and temporary files.
        bridge: the port of the bridge.

    Returns:
        The port of each proxy by its name; ``FRONTS`` has the names.
    """
    ports = {name: free_port() for name in FRONTS}
    haproxy, nginx = folder / "haproxy.conf", folder / "nginx.conf"
    haproxy.write_text(_HAPROXY.format(**ports, bridge=bridge))
    nginx.write_text(_NGINX.format(**ports, bridge=bridge))
    commands: list[list[str | Path]] = [
        ["/usr/sbin/haproxy", "-db", "-f", haproxy],
        ["/usr/sbin/nginx", "-p", folder, "-e", "/dev/null", "-c", nginx],
    ]
    nothing = subprocess.DEVNULL
    processes = [
        await asyncio.create_subprocess_exec(*command, stdin=nothing, stdout=nothing, stderr=nothing)
        for command in commands
    ]

    async def all_listen() -> bool:
        for command, process in zip(commands, processes, strict=True):
            assert process.returncode is None, f"{command} ended with status {process.returncode}"
        try:
            for port in ports.values():
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
        except ConnectionError:
            return False
        return True

    try:
        await until(all_listen)
        yield ports
    finally:
        for process in processes:
            if process.returncode is None:
                process.terminate()
            await process.wait()
