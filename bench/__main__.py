"""`python -m bench NAME [--long]` measures; `python -m bench --render` writes docs/benchmarks.md."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from bench.rows import ROOT, Results, render, table

NAMES = sorted(
    ["peers"]
    + [
        path.stem
        for path in Path(__file__).parent.glob("*.py")
        if path.stem not in ("__init__", "__main__", "rows")
    ]
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES, help="what to measure")
    parser.add_argument("--long", action="store_true", help="the sizes that take over 15 minutes; resumable")
    parser.add_argument(
        "--render", action="store_true", help="write docs/benchmarks.md from bench-out/*.json"
    )
    arguments = parser.parse_args()
    if arguments.name is None and not arguments.render:
        parser.error("name a measurement, or --render")
    if arguments.name is not None:
        name = f"{arguments.name}-long" if arguments.long else arguments.name
        results = Results(name, resume=arguments.long)
        import_module(f"bench.{arguments.name}").measure(results, long=arguments.long)
        print(table(results.rows))
        print(f"written: {results.path.relative_to(ROOT)}")
    if arguments.render:
        render()
        print("written: docs/benchmarks.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
