"""Print the schema."""

from policies.schema import render

print(render(), end="")
