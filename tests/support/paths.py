"""Where the repository lies, for every test in whichever folder."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
