"""The verbs of ``codexctl``, one module each. ``codexd.ctl.table`` lists them.

A verb's module has ``run(options, out) -> int``, which returns the exit code, and ``arguments(parser)`` where the verb
takes any. Both work without rich, which ``codexd.ctl.drawing`` imports when there is something to draw.
"""
