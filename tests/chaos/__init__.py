"""Fault injection: parts are killed, cut off, slowed or given invalid data, and the result of every call is checked."""
