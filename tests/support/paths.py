"""Where things of the checkout are, for tests."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"
GOLDENS = ROOT / "tests" / "goldens"
