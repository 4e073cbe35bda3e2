"""The long suite: load, faults, fuzz. `python -m soak` runs it; docs/reliability.md says what it showed."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("client", "handlers", "deploy", "tests")]
