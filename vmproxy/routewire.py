"""Routes as the kernel says them: rtnetlink messages, and the stream that ``ip route save`` writes.

pyroute2 takes the messages apart; it is imported inside the functions, since it costs more than everything else here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from vmproxy.errors import Refused
from vmproxy.model import Route
from vmproxy.routeparts import DEFAULTS, MAIN_TABLE, Family, gateway_of, interface_of

_MAGIC = 0x45311224  # iproute2, ip/iproute.c: route_dump_magic
_RTM_NEWROUTE = 24  # linux/rtnetlink.h
_RTN_UNICAST = 1
_RTNH_F_DEAD = 1
_RTA_MULTIPATH = 9
_HEADER, _ROUTE_HEADER = 16, 12  # struct nlmsghdr, struct rtmsg
_FAMILIES: dict[int, Family] = {2: "inet", 10: "inet6"}  # Linux's AF_INET and AF_INET6 wherever this runs


def parse_save(data: bytes, links: Mapping[int, str] | None = None) -> tuple[Route, ...]:
    """The unicast routes of an `ip route save` stream. ``links``: interface index → name; else names are ``if#N``.

    Raises Refused where the stream is torn, damaged, or of the other byte order. pyroute2 takes a torn stream for a
    shorter one, so every length is walked before it sees a byte.
    """
    if data[:4] != struct.pack("=I", _MAGIC):
        raise Refused("the saved routes are in a foreign byte order", hint="give the output of `ip route` instead")
    body = b"".join(_messages(data))
    if not body:
        return ()
    from pyroute2.netlink.rtnl.marshal import MarshalRtnl

    try:
        return from_messages(MarshalRtnl().parse(body), links)
    except Exception as error:
        raise Refused("the saved routes are damaged") from error


def _messages(data: bytes) -> Iterable[bytes]:
    """Each route message of the stream, its lengths checked down to the hops."""
    at, end = 4, len(data)
    while at < end:
        if end - at < _HEADER:
            raise _torn(at)
        length, kind = struct.unpack_from("=IH", data, at)
        if length < _HEADER or length > end - at:
            raise _torn(at)
        if kind == _RTM_NEWROUTE:
            first = at + _HEADER + _ROUTE_HEADER
            if first > at + length:
                raise _torn(at)
            _check_attributes(data, first, at + length, hops=True)
            yield data[at : at + length] + bytes(-length % 4)
        at += (length + 3) & ~3


def _check_attributes(data: bytes, at: int, end: int, *, hops: bool) -> None:
    """Walk the attributes from ``at`` to ``end``. Raises Refused where a length leads outside, and for hops inside of a
    hop, which the kernel never writes."""
    while at < end:
        if end - at < 4:
            raise _torn(at)
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or length > end - at:
            raise _torn(at)
        if kind & 0x3FFF == _RTA_MULTIPATH:
            if not hops:
                raise _torn(at)
            hop, stop = at + 4, at + length
            while hop < stop:
                size = struct.unpack_from("=H", data, hop)[0] if stop - hop >= 8 else 0
                if size < 8 or size > stop - hop:
                    raise _torn(hop)
                _check_attributes(data, hop + 8, hop + size, hops=False)
                hop += (size + 3) & ~3
        at += (length + 3) & ~3


def _torn(at: int) -> Refused:
    return Refused("the saved routes are cut off or damaged", where=f"byte {at}", hint="read them without a terminal")


def from_messages(messages: Iterable[Any], links: Mapping[int, str] | None = None) -> tuple[Route, ...]:
    """Routes of pyroute2's route messages: unicast ones that hold for every packet, one for each hop."""
    routes: list[Route] = []
    for message in messages:
        family = _FAMILIES.get(message["family"])
        if family is None or message["type"] != _RTN_UNICAST or message["src_len"] or message["tos"]:
            continue
        network = message.get_attr("RTA_DST")
        destination = f"{network}/{message['dst_len']}" if message["dst_len"] else DEFAULTS[family]
        table = message.get_attr("RTA_TABLE") or message["table"] or MAIN_TABLE
        for hop in message.get_attr("RTA_MULTIPATH") or [message]:
            if hop["flags"] & _RTNH_F_DEAD:
                continue
            index = hop["oif"] if hop is not message else message.get_attr("RTA_OIF")
            routes.append(
                Route(
                    destination=destination,
                    gateway=gateway_of(str(hop.get_attr("RTA_GATEWAY") or ""), family),
                    interface=_name(index, links),
                    metric=message.get_attr("RTA_PRIORITY") or 0,
                    table=table,
                    family=family,
                )
            )
    return tuple(routes)


def _name(index: int | None, links: Mapping[int, str] | None) -> str:
    if not index:
        return ""
    return f"if#{index}" if links is None else interface_of(links.get(index, "")) or f"if#{index}"
