"""Measurements: `python -m bench NAME` prints a table and writes bench-out/NAME.json.

Each module `bench/<name>.py` has `measure(results, *, long)`. Speed is a ratio beside a peer or a raw
primitive measured in the same run; it is reported here and never asserted in a test.
"""
