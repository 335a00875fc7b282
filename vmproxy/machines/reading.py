"""Frames of observe.sh → Facts. PURE; everything in them is untrusted and parsed once, here (RELIABILITY T03, T04)."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

from vmproxy import dockerversion
from vmproxy.errors import Refused
from vmproxy.machines.frames import Frame
from vmproxy.model import Address, Daemon, Facts, File, Mount, Route, Syntax, printable
from vmproxy.routes import parse as parse_routes

_INTERFACE = re.compile(r"[A-Za-z0-9_.@:-]{1,15}\Z")
_LINE = re.compile(r"(?:line |: )(\d{1,7})\b")
_NUMBER = re.compile(r"[0-9]{1,10}\Z")  # int() itself refuses a number of thousands of digits
_NUMBERED = re.compile(rb"[0-9]+: ")
_MARK = re.compile(r"[./]{32,128}\Z")
_MOUNTS = "/proc/mounts"
_VARIANTS = frozenset({"nft", "legacy", "default"})
_VARIANTS6 = frozenset({"nft6", "legacy6", "default6"})
FILE_LIMIT_BYTES = 1 << 20
_LAST_PORT = 65535
_CIDR_LIMIT = 64  # characters


def facts(frames: Iterable[Frame]) -> Facts:
    """One look. Raises Refused where the look is not whole (its last frame is ``end``)."""
    reader = _Reader()
    whole = False
    for frame in frames:
        if frame.kind == "end":
            whole = True
        else:
            reader.take(frame)
    if not whole:
        raise Refused("the VM's answer is not whole", hint="run again with --debug")
    return reader.facts()


def syntax(frames: Iterable[Frame]) -> Mapping[str, Syntax]:
    """What the VM's shell says of files, by path. Raises Refused as :func:`facts`."""
    return facts(frames).syntax


class _Reader:
    def __init__(self) -> None:
        self._uid = -1
        self._boot_id = ""
        self._os: Mapping[str, str] = {}
        self._commands: frozenset[str] = frozenset()
        self._paths: set[str] = set()
        self._real: dict[str, str] = {}
        self._routes: tuple[Route, ...] = ()
        self._save = b""
        self._addresses: tuple[Address, ...] = ()
        self._interfaces: set[str] = set()
        self._bridges: set[str] = set()
        self._listeners: tuple[tuple[str, int], ...] | None = None
        self._mounts: tuple[Mount, ...] = ()
        self._stats: dict[str, File] = {}
        self._bare = False
        self._contents: dict[str, bytes] = {}
        self._bodies: dict[str, bytes] = {}
        self._apart = False
        self._syntax: dict[str, Syntax] = {}
        self._complaints: dict[str, bytes] = {}
        self._texts: dict[str, bytes] = {}
        self._dumps: dict[str, bytes] = {}
        self._dumps6: dict[str, bytes] = {}
        self._dump_errors: dict[str, str] = {}
        self._daemon: Daemon | None = None
        self._version = ""
        self._leftovers: list[str] = []
        self._busy = False
        self._resolved: tuple[str, ...] = ()

    def take(self, frame: Frame) -> None:
        handler = getattr(self, f"_take_{frame.kind}", None)
        if handler is not None:
            handler(frame)

    def facts(self) -> Facts:
        self._fill_in()
        files: dict[str, File] = {}
        for path, stat in self._stats.items():
            files[path] = File(
                path=path,
                content=self._contents.get(path),
                mode=stat.mode,
                uid=stat.uid,
                gid=stat.gid,
                kind=stat.kind,
                links=stat.links,
            )
        return Facts(
            uid=self._uid,
            boot_id=self._boot_id,
            os_release=self._os,
            commands=self._commands,
            paths=frozenset(self._paths),
            real=dict(self._real),
            routes=self._routes,
            route_save=self._save,
            addresses=self._addresses,
            interfaces=frozenset(self._interfaces),
            bridges=frozenset(self._bridges),
            listeners=self._listeners or (),
            bare=self._bare or self._listeners is None,
            mounts=self._mounts,
            files=files,
            syntax=self._syntax,
            texts=self._texts,
            dumps=self._dumps,
            dumps6=self._dumps6,
            dump_errors=self._dump_errors,
            daemon=self._daemon,
            docker_version=self._version,
            leftovers=tuple(self._leftovers),
            busy=self._busy,
            resolved=self._resolved,
        )

    # One method per frame kind, named after it.

    def _take_system(self, frame: Frame) -> None:
        uid, boot = (*frame.words[1:], "", "")[:2]
        self._uid = int(uid) if _NUMBER.match(uid) else -1
        self._boot_id = boot if re.fullmatch(r"[0-9a-f-]{36}", boot) else ""

    def _take_os(self, frame: Frame) -> None:
        self._os = os_release(frame.body)

    def _take_have(self, frame: Frame) -> None:
        self._commands = frozenset(frame.words[1:])

    def _take_path(self, frame: Frame) -> None:
        self._paths.add(frame.rest)
        if real := frame.body.decode("utf-8", "surrogateescape").strip("\n"):
            self._real[frame.rest] = real

    def _take_interface(self, frame: Frame) -> None:
        if _INTERFACE.match(frame.rest):
            self._interfaces.add(frame.rest)

    def _take_bridge(self, frame: Frame) -> None:
        if _INTERFACE.match(frame.rest):
            self._interfaces.add(frame.rest)
            self._bridges.add(frame.rest)

    def _take_routes(self, frame: Frame) -> None:
        try:
            self._routes = parse_routes(frame.body)
        except Refused:
            self._routes = ()

    def _take_network(self, frame: Frame) -> None:
        """Routes and addresses of ``ip -o``: these are numbered."""
        lines = frame.body.splitlines(keepends=True)
        self._take_routes(Frame(words=("routes",), body=b"".join(line for line in lines if not _NUMBERED.match(line))))
        self._addresses = addresses(b"".join(line for line in lines if _NUMBERED.match(line)))

    def _take_save(self, frame: Frame) -> None:
        self._save = frame.body

    def _take_addresses(self, frame: Frame) -> None:
        self._addresses = addresses(frame.body)

    def _take_listeners(self, frame: Frame) -> None:
        self._listeners = listeners(frame.body)

    def _take_mounts(self, frame: Frame) -> None:
        self._mounts = mounts(frame.body)

    def _take_dump(self, frame: Frame) -> None:
        if frame.rest in _VARIANTS:
            self._dumps[frame.rest] = frame.body
        elif frame.rest in _VARIANTS6:
            self._dumps6[frame.rest[:-1]] = frame.body

    def _take_dumped(self, frame: Frame) -> None:
        variant, code = (*frame.words[1:], "", "")[:2]
        if code != "0" and variant in _VARIANTS:
            self._dumps.pop(variant, None)
            self._dump_errors[variant] = printable(f"iptables-save ({variant}) ends with status {code}")
        elif code != "0" and variant in _VARIANTS6:
            self._dumps6.pop(variant[:-1], None)

    def _take_daemon(self, frame: Frame) -> None:
        if _NUMBER.match(frame.rest):
            self._daemon = Daemon(pid=int(frame.rest), environment=environment(frame.body))

    def _take_command(self, frame: Frame) -> None:
        if self._daemon is not None:
            words = frame.body[:65536].decode("utf-8", "surrogateescape").split("\0")
            self._daemon = replace(self._daemon, words=tuple(words[:-1] if words[-1:] == [""] else words))

    def _take_newer(self, frame: Frame) -> None:
        if self._daemon is not None:
            words = frame.body[:65536].decode("ascii", "replace").split()
            self._daemon = replace(self._daemon, newer=frozenset(words))

    def _take_info(self, frame: Frame) -> None:
        found = info(frame.body)
        if found is not None and self._daemon is not None:
            self._version, proxies = found
            self._daemon = replace(self._daemon, proxies=proxies)

    def _take_version(self, frame: Frame) -> None:
        # A running Docker has said it: what is installed may be another one by now.
        self._version = self._version or dockerversion.said(printable(frame.body.strip()))

    def _take_stat(self, frame: Frame) -> None:
        self._stats[frame.rest] = stat(frame.rest, frame.body)

    def _take_stats(self, frame: Frame) -> None:
        """One line for each file that is there; only for files that were asked for, and the first counts."""
        for line in frame.body[: 1 << 20].splitlines():
            words = line.split()
            name = words[words.index(b"->") - 1] if b"->" in words else words[-1] if words else b""
            path = name.decode("ascii", "replace")
            if path in self._stats and self._stats[path].kind == "absent":
                self._stats[path] = stat(path, line)

    def _take_kind(self, frame: Frame) -> None:
        """Without stats: ``file``, ``program`` (it can be run), ``link``, ``dir`` or ``other``, and the path."""
        kind, path = (*frame.words[1:], "", "")[:2]
        self._bare = True
        if path in self._stats and kind in _BARE_KINDS:
            self._stats[path] = File(path=path, **_BARE_KINDS[kind])

    def _take_busy(self, _frame: Frame) -> None:
        self._busy = True

    def _take_leftover(self, frame: Frame) -> None:
        self._leftovers.append(printable(frame.rest))

    def _take_file(self, frame: Frame) -> None:
        self._contents[frame.rest] = frame.body

    def _take_text(self, frame: Frame) -> None:
        self._texts[frame.rest] = frame.body

    def _take_bodies(self, frame: Frame) -> None:
        self._apart = True
        self._bodies = bodies(frame.rest, frame.body)

    def _take_whole(self, frame: Frame) -> None:
        if frame.rest != "0":
            self._bodies = {}  # each comes by itself now

    def _take_body(self, frame: Frame) -> None:
        self._bodies[frame.rest] = frame.body

    def _fill_in(self) -> None:
        """What was read at the end belongs to files, texts, the daemon and the mounts. Raises Refused."""
        for found in (self._contents, self._texts):
            if self._apart and found.keys() - self._bodies.keys():
                raise Refused("the VM's answer is not whole", hint="run again with --debug")
            found.update((path, self._bodies[path]) for path in found if path in self._bodies)
        for path, content in self._contents.items():
            if len(content) > FILE_LIMIT_BYTES:
                raise Refused(f"the file is larger than {FILE_LIMIT_BYTES} bytes", where=printable(path))
        self._texts = {path: text for path, text in self._texts.items() if len(text) <= FILE_LIMIT_BYTES}
        if _MOUNTS in self._bodies:
            self._mounts = mounts(self._bodies[_MOUNTS])
        if self._daemon is not None and (said := self._bodies.get(f"/proc/{self._daemon.pid}/environ")) is not None:
            self._daemon = replace(self._daemon, environment=environment(said))

    def _take_parse(self, frame: Frame) -> None:
        self._complaints[frame.rest] = frame.body

    def _take_parsed(self, frame: Frame) -> None:
        code, tail = (*frame.words[1:3], "", "")[:2]
        path = " ".join(frame.words[3:])
        complaint = self._complaints.get(path, b"")
        found = _LINE.search(complaint.decode("ascii", "replace"))
        self._syntax[path] = Syntax(
            parses=code == "0",
            tail_lives=tail != "0",
            message=printable(complaint.strip()) if code != "0" else "",
            line=int(found[1]) if found and code != "0" else 0,
        )

    def _take_resolved(self, frame: Frame) -> None:
        self._resolved = resolved(frame.body)


def bodies(mark: str, data: bytes) -> dict[str, bytes]:
    """What ``head -v`` wrote of several files, by path. ``mark`` stands before each path, as observe.sh spelled it."""
    head = f"\n==> {mark}/".encode("ascii", "replace")
    out = {}
    for piece in (b"\n" + data).split(head)[1:] if _MARK.match(mark) else ():
        name, end, content = piece.partition(b" <==\n")
        if end:  # as the words of a frame have it
            out[" ".join(f"/{name.decode('ascii', 'backslashreplace')}".split())] = content
    return out


def info(data: bytes) -> tuple[str, Mapping[str, str]] | None:
    """Version and proxies in what ``docker info`` said, four JSON texts; None where the daemon did not answer."""
    rest, words = data[:65536].decode("utf-8", "replace").strip(), []
    for _ in range(4):
        try:
            word, end = json.JSONDecoder().raw_decode(rest)
        except (ValueError, RecursionError):
            return None
        if not isinstance(word, str):
            return None
        rest = rest[end:].lstrip()
        words.append(word)
    version = dockerversion.checked(words[0])
    named = zip(("http-proxy", "https-proxy", "no-proxy"), words[1:], strict=True)
    return (version, {name: text for name, text in named if text}) if version else None


def os_release(data: bytes) -> Mapping[str, str]:
    """os-release(5): ``NAME=value`` lines, optionally quoted."""
    out: dict[str, str] = {}
    for line in data[:65536].decode("utf-8", "replace").splitlines():
        name, sep, value = line.partition("=")
        if sep and re.fullmatch(r"[A-Z0-9_]{1,64}", name):
            out[name] = printable(value.strip().strip("\"'"))
    return out


def addresses(data: bytes) -> tuple[Address, ...]:
    """``ip -o addr show``, or the ``inet addr:``/``inet `` lines of ifconfig."""
    out: list[Address] = []
    interface = ""
    for raw in data[: 1 << 20].decode("ascii", "replace").splitlines():
        words = raw.split()
        if raw[:1].isdigit() and len(words) > 3 and words[2] in ("inet", "inet6"):
            _add(out, words[1].rstrip(":"), words[3], words[2])
        elif raw[:1] not in ("", " ", "\t") and words and not raw[0].isdigit():
            interface = words[0].rstrip(":")
        elif interface and words[:1] == ["inet"]:
            fields = dict(zip(words[::2], words[1::2], strict=False))
            old = dict(word.split(":", 1) for word in words[1:] if ":" in word)
            address, mask = (old.get("addr"), old.get("Mask")) if old else (fields.get("inet"), fields.get("netmask"))
            if address and mask:
                _add(out, interface, f"{address}/{mask}", "inet")
    return tuple(out)


def _add(out: list[Address], interface: str, cidr: str, family: str) -> None:
    value = _prefixed(cidr) if len(cidr) <= _CIDR_LIMIT else ""
    if (":" in value) != (family == "inet6"):
        return
    if value and _INTERFACE.match(interface):
        kind: Literal["inet", "inet6"] = "inet6" if family == "inet6" else "inet"
        out.append(Address(interface=interface.partition("@")[0], cidr=value, family=kind))


@lru_cache(maxsize=512)  # many VMs are looked at in one run, and half of their addresses are the same in all
def _prefixed(cidr: str) -> str:
    """The address with its prefix's length in its usual form, "" where it is none."""
    try:
        return ipaddress.ip_interface(cidr).with_prefixlen
    except ValueError:
        return ""


def listeners(data: bytes) -> tuple[tuple[str, int], ...]:
    """Listening sockets, of ``ss -ltn`` (state, two queues, address) or of /proc/net/tcp and tcp6 (proc(5): addresses
    are hex words in the machine's, little-endian, order)."""
    out: set[tuple[str, int]] = set()
    for line in data[: 1 << 20].decode("ascii", "replace").splitlines():
        words = line.split()
        if len(words) < 4:
            continue
        if words[0] == "LISTEN":
            if (shown := _shown(words[3])) is not None:
                out.add(shown)
            continue
        if words[3] != "0A":
            continue
        host, _, port = words[1].partition(":")
        try:
            raw = bytes.fromhex(host)
            number = int(port, 16)
        except ValueError:
            continue
        if not 0 <= number <= _LAST_PORT:
            continue
        if len(raw) == 4:
            out.add((str(ipaddress.IPv4Address(raw[::-1])), number))
        elif len(raw) == 16:
            v6 = ipaddress.IPv6Address(b"".join(raw[i : i + 4][::-1] for i in range(0, 16, 4)))
            out.add((str(v6.ipv4_mapped or v6), number))
    return tuple(sorted(out))


def _shown(text: str) -> tuple[str, int] | None:
    """``1.2.3.4:80``, ``127.0.0.53%lo:53``, ``[::1]:80``, and ``*:80``: any, of both families."""
    host, _, port = text.rpartition(":")
    host = host.partition("%")[0].strip("[]")
    if not _NUMBER.match(port) or int(port) > _LAST_PORT:
        return None
    try:
        address = ipaddress.ip_address("::" if host == "*" else host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), int(port)


def mounts(data: bytes) -> tuple[Mount, ...]:
    """/proc/mounts (fstab(5) fields); octal escapes of blanks in the mount point are kept as they are."""
    out = []
    for line in data[: 1 << 20].decode("utf-8", "replace").splitlines():
        words = line.split()
        if len(words) >= 4:
            out.append(Mount(point=words[1], fstype=words[2], options=frozenset(words[3].split(","))))
    return tuple(out)


def environment(data: bytes) -> Mapping[str, str]:
    """/proc/PID/environ: NUL-separated ``NAME=value``."""
    out = {}
    for item in data[: 1 << 20].split(b"\0"):
        name, sep, value = item.partition(b"=")
        if sep:
            out[name.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
    return out


_BARE_KINDS: Mapping[str, Mapping[str, Any]] = {
    "file": {"kind": "file"},
    "program": {"kind": "file", "mode": 0o755},
    "link": {"kind": "link"},
    "dir": {"kind": "dir"},
    "other": {"kind": "other"},
}
_KINDS = {"-": "file", "l": "link", "d": "dir"}


def stat(path: str, line: bytes) -> File:
    """``ls -ldin`` (POSIX): inode, mode string, links, uid, gid. An empty answer means absent."""
    words = line.decode("ascii", "replace").split()
    if len(words) < 5 or not all(_NUMBER.match(word) for word in (words[2], words[3], words[4])):
        return File(path=path, kind="absent")
    text = words[1]
    return File(
        path=path,
        mode=mode_bits(text),
        uid=int(words[3]),
        gid=int(words[4]),
        kind=_KINDS.get(text[:1], "other"),
        links=int(words[2]),
    )


def mode_bits(text: str) -> int:
    """``-rwsr-xr-t`` → 0o5755: POSIX ls's file mode, the special bits in the execute places."""
    mode = 0
    for place, char in enumerate(text[1:10]):
        bit = 0o400 >> place
        if char in "rwxst":
            mode |= bit
        if char in "sStT":
            mode |= (0o4000, 0o2000, 0o1000)[place // 3]
    return mode


def resolved(data: bytes) -> tuple[str, ...]:
    """IPv4 addresses of ``getent ahostsv4`` (first words) or of nslookup's answer part (``Address…: IP``), in order,
    once each."""
    out: list[str] = []
    text = data[:65536].decode("ascii", "replace")
    answer = text.partition("Name:")[2] or text
    for line in answer.splitlines():
        words = line.split()
        for word in (words[0] if words else "", *(words[-2:] if line.startswith("Address") else ())):
            try:
                found = str(ipaddress.IPv4Address(word))
            except ValueError:
                continue
            if found not in out:
                out.append(found)
    return tuple(out)
