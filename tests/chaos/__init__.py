"""Faults by the thousand: real parts are killed, cut, slowed and lied to, and every call is accounted for."""
