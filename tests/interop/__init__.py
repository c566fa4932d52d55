"""Tests with real MCP clients: each gets only a URL and a token, and is tested for the same behaviours."""
