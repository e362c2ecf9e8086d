"""The child process that decodes untrusted pictures and encodes what becomes of them.

Run as `python -m srstream.pictures.child` by `InChild`.
"""

from __future__ import annotations

import sys

from srstream.pictures.steps import STEP
from srstream.sandbox.step_child import run_child

if __name__ == "__main__":
    sys.exit(run_child(STEP))
