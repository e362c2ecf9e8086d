"""Decides in the worker who may push frames over TCP: the holders of the control socket's keys."""

from __future__ import annotations

import logging
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from srstream.daemon.frames.sockets import CurveServer
from srstream.protocol.keys import KeyRing

logger = logging.getLogger(__name__)

_DOMAIN = "srstream-frames"


class _Known:
    """Tells pyzmq's authenticator which keys are allowed; a revoked key is unknown at once."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether the holder of a public key (Z85) may connect."""
        return self._keys.name_of(key.decode()) is not None


class FrameKeys:
    """Runs a ZAP handler in a thread, and owns the context in which it answers.

    Raises:
        ConfigError: the keys are damaged, or others may read them.
    """

    def __init__(self, folder: Path) -> None:
        keys = KeyRing(folder)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.curve = CurveServer(keys.public.encode(), keys.secret.encode(), _DOMAIN.encode())
        self._handler = ThreadAuthenticator(self.context, log=logger)
        self._handler.start()
        self._handler.configure_curve_callback(_DOMAIN, credentials_provider=_Known(keys))

    def close(self) -> None:
        """End the thread, then the context; the sockets must be closed already."""
        self._handler.stop()
        self.context.term()
