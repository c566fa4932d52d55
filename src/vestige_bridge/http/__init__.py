"""Parsing and encoding of header fields, request heads and event streams. No I/O."""
