"""The held session, and every message that travels on it or on a client's own session."""
