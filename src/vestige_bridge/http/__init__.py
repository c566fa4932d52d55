"""HTTP as text: header fields, heads of requests, event streams. No I/O."""
