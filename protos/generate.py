"""Builds the Python classes of the protocol; with --check says whether the tree's are current.

Usage: python protos/generate.py [--check]
"""

from __future__ import annotations

import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent / "distbelief" / "v1"
GENERATED = Path(__file__).parent.parent / "distbelief" / "transport" / "_generated"
SOURCES = sorted(PROTOS.glob("*.proto"))
NAMES = [f"{source.stem}_pb2.{kind}" for source in SOURCES for kind in ("py", "pyi")]


def generate(folder: Path) -> None:
    """Writes the generated files into ``folder``."""
    arguments = [
        "protoc",
        f"-I{PROTOS}",
        f"--python_out={folder}",
        f"--pyi_out={folder}",
        *map(str, SOURCES),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")


def main() -> None:
    """Generates, or checks."""
    if sys.argv[1:] != ["--check"]:
        GENERATED.mkdir(exist_ok=True)
        generate(GENERATED)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = [
            n for n in NAMES if not filecmp.cmp(Path(folder) / n, GENERATED / n, shallow=False)
        ]
    if stale:
        raise SystemExit(f"not current: {', '.join(stale)}; run python protos/generate.py")


if __name__ == "__main__":
    main()
