"""Who is connected to, and says nothing more: one end of a unix socket."""

from __future__ import annotations

import socket
import threading
from pathlib import Path


class Mute:
    """It takes one connection, has :meth:`talk` with whoever made it, and is silent from then on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked = threading.Event()
        """What is not answered was said."""
        self.left = threading.Event()
        """And whoever said it has gone."""
        self.unheard = b""
        """What was said after that."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """It is not there any more."""
        self._listener.close()

    def talk(self, client: socket.socket) -> None:
        """Up to what is not answered: the first words."""
        client.recv(4096)

    def _serve(self) -> None:
        with self._listener.accept()[0] as client:
            self.talk(client)
            self.asked.set()
            while piece := client.recv(4096):
                self.unheard += piece
            self.left.set()
