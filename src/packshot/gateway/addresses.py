"""Who calls, by address: the connection's, or what a proxy that is trusted says of it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from packshot.core.errors import InvalidRequest

__all__ = ["Network", "caller_of", "network_of", "within"]

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def network_of(text: str, name: str) -> Network:
    """Return a network; ``name`` is that of the setting.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidRequest(
            f"{name} are addresses or networks like 10.0.0.0/8 or ::1, got {text[:80]!r}"
        ) from error


def within(address: str, networks: Iterable[Network]) -> bool:
    """Tell whether an address, also one of IPv4 written as one of IPv6, lies in one of them."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return any(ip in each for each in networks)


def caller_of(headers: Mapping[bytes, bytes], peer: str, trusted: Sequence[Network]) -> str:
    """Return the address of who calls through a connection from ``peer``.

    Where that is a proxy's of ``trusted``, it is what the proxy wrote: the last address in
    ``x-forwarded-for`` that is no such proxy itself (as RFC 7239, section 7.4, reads a chain). What
    stands before it a caller can have written, and is not believed.
    """
    if not trusted or not within(peer, trusted):
        return peer
    for said in reversed(headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")):
        address = said.strip()
        if address and not within(address, trusted):
            return address
    return peer
