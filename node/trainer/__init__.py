"""Processes that train for a party: how they start, what they may, what runs in them.

`process`, `recipes` and `rows` are the node's side and import nothing heavy. `worker` is the program that
runs in the process; it alone brings in Flower and the recipe (`contributing`, `leading`, `grid`, `strategy`,
`arrays`).
"""
