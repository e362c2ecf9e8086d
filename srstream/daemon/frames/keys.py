"""Who may push frames over TCP: the keys that the control socket knows, asked in the worker."""

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
    """What pyzmq's authenticator asks; a key that was revoked is unknown from then on."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the holder of a public key (Z85) is let in."""
        return self._keys.name_of(key.decode()) is not None


class FrameKeys:
    """A ZAP handler in a thread of its own, and the context in which it answers.

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
        """End the thread, then the context; sockets must be closed before."""
        self._handler.stop()
        self.context.term()
