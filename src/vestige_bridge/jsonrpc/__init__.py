"""JSON-RPC as text: messages are parsed without being printed again, and built. No I/O."""
