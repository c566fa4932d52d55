"""``POST``, ``GET`` and ``DELETE`` on ``/mcp``: one client message becomes one exchange with upstream."""
