"""The benchmarks: the bridge compared with its alternatives, in one run on one machine.

Invariants: the measured and the measuring code share no process; a compiled tool makes the load; every ratio is
computed within one round; and documents contain only figures from results of a run.
"""
