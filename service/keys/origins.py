"""Which web pages may use the server from a browser, and by which names it may be called.

A browser sends a request of any page's to any server, and tells by `Origin` whose it is (RFC 6454). What it lets that
page read is up to the server (CORS), but for WebSockets: those it opens to everybody, and the server has to look.
A server that listens on this machine only is called by names of this machine. A page whose own name is made to lead to
it (DNS rebinding) would be of the same origin; the name in `Host` gives it away.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

ALL = "*"

_PORTS = {"http": 80, "https": 443}


def origin_of(text: str) -> str:
    """An origin as browsers write it: in small letters, without a port that goes without saying.

    Raises:
        ValueError: it is none.
    """
    try:
        parts = urlsplit(text.strip().lower())
        port = parts.port
    except ValueError:
        raise _no_origin(text) from None
    if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise _no_origin(text)
    if parts.username is not None:
        raise _no_origin(text)
    return f"{parts.scheme}://{_name(parts)}" + ("" if port in (None, _PORTS[parts.scheme]) else f":{port}")


class Origins:
    """What is let in.

    Args:
        named: origins that may use the server besides its own, as `origin_of` gives them, or ALL.
        host: that the server listens on.
    """

    def __init__(self, named: Collection[str], host: str) -> None:
        self.named = frozenset(named)
        self._hosts = {urlsplit(origin).hostname for origin in named}
        self._checks_hosts = ALL not in named and is_loopback(host)

    def allows(self, origin: str, host: str | None = None) -> bool:
        """Whether pages of an origin may use the server.

        Args:
            origin: the header.
            host: the header; pages of the server that it names may. None where only named ones may.
        """
        if ALL in self.named or origin in self.named:
            return True
        if host is None:
            return False
        try:
            page = urlsplit(origin)
            return page.scheme in _PORTS and origin_of(f"{page.scheme}://{host}") == origin_of(origin)
        except ValueError:
            return False

    def knows(self, host: str) -> bool:
        """Whether the server may be called so.

        No other page has a name without a dot, or an address: those lead where they say.
        """
        if not self._checks_hosts:
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return "." not in name or name.endswith(".localhost") or _is_address(name) or name in self._hosts


def is_loopback(host: str) -> bool:
    """Whether what listens there is reached from this machine only."""
    return ipaddress.ip_address(host).is_loopback if _is_address(host) else host.lower() == "localhost"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _name(parts: SplitResult) -> str:
    return f"[{parts.hostname}]" if ":" in (parts.hostname or "") else str(parts.hostname)


def _no_origin(text: str) -> ValueError:
    return ValueError(f"{text!r} is no origin; give what browsers send, as https://app.example, or * for all")
