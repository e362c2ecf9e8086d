"""Decides in the worker who may push frames over TCP: the holders of the control socket's keys."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from srstream.daemon.frames.sockets import CurveServer
from srstream.protocol.keys import KeyRing

logger = logging.getLogger(__name__)

_DOMAIN = "srstream-frames"


class _Known:
    """Tells pyzmq's authenticator, in its thread, which keys are allowed."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys
        self._lock = threading.Lock()

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether the holder of a public key (Z85) may connect."""
        return self.is_allowed(key.decode())

    def is_allowed(self, public: str) -> bool:
        """Return whether a key is allowed now; any thread may ask."""
        with self._lock:
            return self._keys.find(public) is not None


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
        known = _Known(keys)
        self._handler.configure_curve_callback(_DOMAIN, credentials_provider=known)
        self.is_allowed = known.is_allowed

    def close(self) -> None:
        """End the thread, then the context; the sockets must be closed already."""
        self._handler.stop()
        self.context.term()
