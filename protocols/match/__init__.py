"""Two lists compared: the receiver learns which of its items the sender has. SPEC.md.

`parties` plays a whole comparison; `shape` has the public numbers. KKRT is put together from `hashing`,
`cuckoo`, `base_ot` and `transpose` in `kkrt`; short lists are compared as in `dh`.
"""
