"""``docker:[CONTEXT]``: into the VM of a Docker engine, by a privileged container and nsenter(1).

Nothing is pulled and no image of the user's is run: an image is made that holds only symbolic links into the VM's own
root, which is bound read-only, so that nsenter and its libraries are the VM's; ``--helper-image`` names another one
that is there. Image and container are removed at the end.

The container is only the way in. A restart of Docker ends it, and may be a part of the change: so what runs in the VM
leaves the container (keep.sh), and where the container ends, another one takes up the conversation, to the byte, in
both directions (enter.sh). A client that ends says so by the end of input, as everywhere.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from vmproxy.errors import LostContact, Refused, VmproxyError
from vmproxy.model import Target, printable
from vmproxy.transports import SshOptions
from vmproxy.transports._engine import Engine, Stoppable, explain
from vmproxy.transports._piped import Piped

LABEL = "vmproxy=way-in"
_PLACES = ("bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr")
_MAKE_SECONDS = 60.0
_BEGIN_SECONDS = 60.0
_END_SECONDS = 10.0
_PAUSE_SECONDS = 0.5
_LEFTOVER_AGE = "10m"
_LINE_LIMIT_BYTES = 200
_STDERR_LIMIT_BYTES = 64 << 10
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def connect(target: Target, *, options: SshOptions, first: str = "") -> DockerConnection:
    """The VM of the engine that this context leads to. Raises UsageError without a docker client, Unreachable,
    NotPermitted, Refused."""
    engine = Engine(target.context, environ=os.environ)
    engine.ask(timeout_seconds=options.connect_timeout_seconds, stoppable=options.stoppable)
    return DockerConnection(engine, options)


class DockerConnection:
    """Implements :class:`vmproxy.transports.Connection`. The image is made with it, and removed by :meth:`close`."""

    def __init__(self, engine: Engine, options: SshOptions) -> None:
        self._engine, self._options = engine, options
        self._open: list[DockerChannel] = []
        self._closed = False
        self._made = ""
        if options.helper_image:
            self._image = engine.image(options.helper_image, stoppable=options.stoppable)
            return
        self._made = f"vmproxy-way-in:{os.urandom(8).hex()}"
        try:
            self._image = _make(engine, self._made, options.stoppable)
        except BaseException:  # it may be there all the same, but nobody knows
            made, self._made = self._made, ""
            with contextlib.suppress(VmproxyError):
                engine.run("image", "rm", made, timeout_seconds=_END_SECONDS)
            raise

    def start(self, command: str) -> DockerChannel:
        """Start a command by the VM's sh. Raises Refused, NotPermitted, Unreachable, LostContact."""
        words = self._words(command)
        channel = DockerChannel(
            lambda: Piped(words, environ=self._engine.environ),
            own_image=bool(self._made),
            limit_bytes=self._options.output_limit_bytes,
        )
        self._open.append(channel)
        if self._closed:  # by another thread, which may not have seen this one
            channel.close()
        channel.begin()
        return channel

    def close(self) -> None:
        """Close every channel, from whatever thread, and take the image away; no command is started any more."""
        self._closed = True
        with contextlib.ExitStack() as stack:  # each of them, also where a signal ends the wait for another
            stack.callback(self._remove)
            for channel in list(self._open):
                stack.callback(channel.close)
            self._open.clear()

    def _words(self, command: str) -> tuple[str, ...]:
        """``docker run``; every word is a constant but for the image's id."""
        enter, keep = _text("enter.sh"), _text("keep.sh")
        # Without a log, which would keep on the VM's disk what is said. What the client's own settings put into the
        # environment of every container, a proxy, is dropped by env -i.
        return self._engine.argv(
            *("run", "--rm", "--interactive", "--privileged", "--pid=host", "--network=host", "--userns=host"),
            *(("--cgroupns=host",) if self._engine.has_cgroup_namespaces else ()),
            *("--log-driver=none", "--no-healthcheck", "--user=0:0", "--workdir=/", f"--label={LABEL}"),
            *(("--volume=/:/vm:ro",) if self._made else ()),
            *("--entrypoint=nsenter", self._image, "-t", "1", "-m", "-u", "-n", "-i", "--"),
            # The word in the environment says that one of the running containers is ours (change.sh).
            *("env", "-i", _PATH, "LC_ALL=C", "VMPROXY_WAY_IN=1", "sh", "-c", enter, "vmproxy", command, keep),
        )

    def _remove(self) -> None:
        """Our image, and those of runs that were killed."""
        made, self._made = self._made, ""
        if not made:
            return
        try:
            self._take_away(made)
        except BaseException:  # a signal, which comes but once: the image goes all the same
            self._take_away(made)
            raise

    def _take_away(self, made: str) -> None:
        deadline = time.monotonic() + _END_SECONDS
        while True:
            try:
                said = self._engine.run("image", "rm", made, timeout_seconds=_MAKE_SECONDS)
                # While the container is on its way out the image is in use.
                if said.status == 0 or b"container" not in said.stderr:
                    break
            except VmproxyError:
                pass
            if time.monotonic() > deadline:
                self._options.notify(f"left in the engine: the image {made}; the next run removes it")
                return
            time.sleep(_PAUSE_SECONDS)
        with contextlib.suppress(VmproxyError):
            filters = (f"--filter=label={LABEL}", f"--filter=until={_LEFTOVER_AGE}")
            self._engine.run("image", "prune", "--all", "--force", *filters, timeout_seconds=_MAKE_SECONDS)


class _Ended(LostContact):
    """The container ended, or was ended; another one may go on."""


class DockerChannel:
    """One running command; implements :class:`vmproxy.transports.Channel`, over one container after the other."""

    def __init__(self, way: Callable[[], Piped], *, own_image: bool, limit_bytes: int) -> None:
        self._make_way, self._own_image, self._room = way, own_image, limit_bytes
        self._nonce = os.urandom(16).hex()
        self._way: Piped | None = None
        self._sent = bytearray()  # all of it: what did not arrive is sent again
        self._got = 0
        self._ahead = bytearray()
        self._said = bytearray()
        self._raw = bytearray()
        self._left, self._errors = 0, False
        self._input_ended = self._over = self._joined = self._closed = False
        self._status: int | None = None

    @property
    def stderr(self) -> bytes:
        """What the command said on stderr, known at its end."""
        return bytes(self._said)

    def begin(self) -> None:
        """Start the command in the VM. Raises Refused, NotPermitted, Unreachable, LostContact."""
        deadline = time.monotonic() + _BEGIN_SECONDS
        word = self._open("open", deadline)
        if word == "ready 0":
            self._joined = True
            self._check_open()
            return
        self.close()
        if word == "bound":
            raise Refused(
                "what runs in the VM cannot leave the container's control groups",
                where="/sys/fs/cgroup",
                hint="go in by another way, ssh://USER@VM",
            )
        raise LostContact(f"the VM's shell does not answer: {printable(word, limit=60)}; nothing was changed")

    def send(self, data: bytes, *, timeout_seconds: float) -> None:
        """Write all of ``data``; what a container that ended did not pass on, the next one does. Raises LostContact."""
        way = self._way
        if self._input_ended or self._over or way is None:
            raise LostContact("the command's input is closed")
        deadline = time.monotonic() + timeout_seconds
        self._sent += data
        try:
            way.send(data, timeout_seconds=timeout_seconds)
        except LostContact:
            if time.monotonic() >= deadline:
                raise
            self._again(deadline)

    def receive(self, *, timeout_seconds: float) -> bytes:
        """The next piece of stdout, ``b""`` at its end. Raises LostContact."""
        deadline = time.monotonic() + timeout_seconds
        while not self._ahead and not self._over:
            self._more(deadline, f"no answer within {timeout_seconds:g} s")
        piece = bytes(self._ahead)
        self._ahead.clear()
        return piece

    def end_input(self) -> None:
        """Close the command's stdin."""
        self._input_ended = True
        way = self._way
        if way is not None:
            way.end_input()

    def wait(self, *, timeout_seconds: float) -> int | None:
        """The exit status; None where it is not known. Raises LostContact."""
        deadline = time.monotonic() + timeout_seconds
        while not self._over:
            self._more(deadline, f"the command did not end within {timeout_seconds:g} s")
        return self._status

    def close(self) -> None:
        """End the command's input, and wait a little for its end: it may be putting things back. No container is
        started any more, whatever thread is about to. Safe to call twice."""
        self._closed = self._input_ended = True
        way, self._way = self._way, None
        if way is not None:
            way.close(patience_seconds=_END_SECONDS)

    def _check_open(self) -> None:
        if self._closed:
            raise LostContact("the command's channel is closed")

    def _more(self, deadline: float, late: str) -> None:
        """Something more of what the command says, from this container or the next. Raises LostContact."""
        if not self._joined:  # interrupted on the way to the next container
            self._again(deadline)
        try:
            self._take(self._next(deadline, late))
        except _Ended:
            self._again(deadline)

    def _open(self, mode: str, deadline: float) -> str:
        """The first line of a new container."""
        old = self._way
        if old is not None:
            old.close()
        self._joined = False
        self._raw.clear()
        self._left = 0
        self._check_open()
        way = self._way = self._make_way()
        if self._closed:  # meanwhile, by another thread, which may not have seen this one
            way.close()
            self._check_open()
        with contextlib.suppress(LostContact):  # it ended at once: what it said is the better reason
            way.send(f"{mode} {self._nonce} {self._got}\n".encode("ascii"), timeout_seconds=_BEGIN_SECONDS)
        while b"\n" not in self._raw:
            try:
                self._raw += self._next(deadline, "the container does not start")
            except _Ended:
                with contextlib.suppress(LostContact):
                    way.wait(timeout_seconds=_END_SECONDS)
                raise explain(way.stderr, own_image=self._own_image) from None
            if len(self._raw) > _LINE_LIMIT_BYTES and b"\n" not in self._raw[:_LINE_LIMIT_BYTES]:
                raise LostContact(f"the VM does not speak as agreed: {printable(bytes(self._raw), limit=80)}")
        line, _, rest = bytes(self._raw).partition(b"\n")
        self._raw[:] = rest
        return line.decode("utf-8", "replace").strip()

    def _again(self, deadline: float) -> None:
        """The next container takes up the conversation, as soon as the engine runs. Raises LostContact."""
        while True:
            self._check_open()
            left = deadline - time.monotonic()
            if left <= 0:
                raise LostContact("the engine ended the container and does not take another")
            word = ""
            with contextlib.suppress(VmproxyError):
                word = self._open("again", min(deadline, time.monotonic() + _BEGIN_SECONDS))
            if word == "gone":
                raise LostContact("the engine was restarted, and what ran in the VM is gone")
            if word.startswith("ready ") and word[6:].isascii() and word[6:].isdigit():
                arrived, way = int(word[6:]), self._way
                if way is None:
                    continue  # closed
                if arrived > len(self._sent):
                    raise LostContact(f"the VM does not speak as agreed: {printable(word, limit=60)}")
                with contextlib.suppress(LostContact):  # it ended, too: then the next one
                    if arrived < len(self._sent):
                        way.send(bytes(self._sent[arrived:]), timeout_seconds=max(1.0, left))
                    if self._input_ended:
                        way.end_input()
                    self._joined = True
                    return
            time.sleep(min(_PAUSE_SECONDS, max(0.0, left)))

    def _next(self, deadline: float, late: str) -> bytes:
        """Raw bytes of the container, at least one. Raises _Ended, LostContact."""
        if self._raw and self._left == 0 and b"\n" in self._raw:
            return b""
        left = deadline - time.monotonic()
        if left <= 0:
            raise LostContact(late)
        way = self._way
        if way is None:
            raise LostContact("the command's channel is closed")
        piece = way.receive(timeout_seconds=left)
        if not piece:
            self._check_open()
            raise _Ended("the container ended")
        return piece

    def _take(self, piece: bytes) -> None:
        """Headers and their bytes; see enter.sh."""
        self._raw += piece
        while self._raw and not self._over:
            if self._left:
                some = bytes(self._raw[: self._left])
                del self._raw[: len(some)]
                self._left -= len(some)
                if self._errors:
                    self._said += some[: max(0, _STDERR_LIMIT_BYTES - len(self._said))]
                else:
                    self._got += len(some)
                    self._room -= len(some)
                    self._ahead += some
                    if self._room < 0:
                        raise LostContact(f"the command says more than is believable: {printable(some, limit=40)}")
                continue
            line, newline, rest = bytes(self._raw).partition(b"\n")
            if not newline:
                if len(line) > _LINE_LIMIT_BYTES:
                    raise LostContact(f"the VM does not speak as agreed: {printable(line, limit=80)}")
                return
            self._raw[:] = rest
            self._header(line.split())

    def _header(self, words: list[bytes]) -> None:
        kind, number = (*words, b"", b"")[:2]
        if kind in (b"out", b"err") and number.isdigit() and len(number) < 12:
            self._left, self._errors = int(number), kind == b"err"
            if self._errors:  # whole, also where the container before has said a part of it
                self._said.clear()
        elif kind == b"end":
            self._over = True
            self._status = int(number) if number.isdigit() and len(number) < 5 else None
        else:
            raise LostContact(f"the VM does not speak as agreed: {printable(b' '.join(words), limit=80)}")


def _make(engine: Engine, name: str, stoppable: Stoppable) -> str:
    """Import the image of links; its id."""
    words = engine.argv("import", f"--change=LABEL {LABEL}", "-", name)
    with contextlib.closing(Piped(words, environ=engine.environ)) as way, stoppable(way.close):
        with contextlib.suppress(LostContact):
            way.send(_archive(), timeout_seconds=_MAKE_SECONDS)
        way.end_input()
        said = b""
        while piece := way.receive(timeout_seconds=_MAKE_SECONDS):
            said += piece[:1000]
        if way.wait(timeout_seconds=_MAKE_SECONDS) != 0:
            raise explain(way.stderr)
    lines = said.decode("utf-8", "replace").split()
    if not lines or not lines[-1].startswith("sha256:"):
        raise LostContact(f"docker import does not name an image: {printable(said, limit=80)}")
    return lines[-1]


def _archive() -> bytes:
    """The image: no file, only links into the VM's root."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in _PLACES:
            link = tarfile.TarInfo(name)
            link.type, link.linkname, link.mode = tarfile.SYMTYPE, f"vm/{name}", 0o777
            tar.addfile(link)
    return out.getvalue()


def _text(name: str) -> str:
    """One script without its comment lines and indentation."""
    lines = Path(__file__).with_name(name).read_text("utf-8").splitlines()
    return "\n".join(line.lstrip(" ") for line in lines if line.strip() and not line.lstrip().startswith("#")) + "\n"
