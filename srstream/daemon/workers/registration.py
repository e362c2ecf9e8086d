"""The child process that registers weights which a client sent: nobody trusts the file.

Run as `python -m srstream.daemon.workers.registration`; its order is a `Registration`, and it
answers with one `Registered`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import BaseModel

from srstream.errors import SrstreamError, error_to_wire
from srstream.models.registry import add_model, check_weights_name
from srstream.sandbox.child import take_order


class Registration(BaseModel):
    """The order: which weights become a model, and under which name."""

    descriptor: int
    """The open file of weights."""
    source: Path
    """What the client calls the file, for messages."""
    name: str
    replace: bool


class Registered(BaseModel):
    """The answer: the error's class and text, or None."""

    error: tuple[str, str] | None = None


def register(order: Registration) -> Registered:
    """Register the weights; an error speaks of the file by the client's name for it."""
    opened = Path(f"/proc/self/fd/{order.descriptor}")
    try:
        check_weights_name(order.source)
        add_model(opened, order.name, replace=order.replace)
    except SrstreamError as error:
        kind, text = error_to_wire(error)
        return Registered(error=(kind, text.replace(str(opened), str(order.source))))
    return Registered()


def main() -> int:
    """Entry point of the child."""
    channel, order = take_order(Registration)
    channel.send(register(order))
    return 0


if __name__ == "__main__":
    sys.exit(main())
