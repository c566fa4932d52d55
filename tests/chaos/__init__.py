"""Fault injection: parts are killed, cut, slowed or fed invalid data, and every call is accounted for."""
