"""The interpreter's tests are collected only in the interpreter (test_interpreter.py starts it)."""

from ssl_fast.ops.triton import tiles

collect_ignore = [] if tiles.interpreted() else ["interpreted"]
