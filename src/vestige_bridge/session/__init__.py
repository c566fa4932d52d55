"""The shared session, and all messages that clients send on it or on their own upstream sessions."""
