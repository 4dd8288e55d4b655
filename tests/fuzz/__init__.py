"""Seeded mutation fuzzers of everything that reads users' bytes: `python -m tests.fuzz --help`."""

import sys
from pathlib import Path

# The files that are mutated are built by the tests' own helpers, which lie flat in tests/.
TESTS = str(Path(__file__).resolve().parents[1])
if TESTS not in sys.path:
    sys.path.append(TESTS)
