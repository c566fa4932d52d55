"""The benchmarks: the bridge side by side with what one would use instead, in one run on one machine.

The law of this package: nothing that is measured shares its process with what measures, the load comes from a compiled
tool, every ratio is taken within one round, and no figure reaches a document but from a result that a run wrote.
"""
