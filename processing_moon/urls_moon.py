"""Fetch an image from a URL: from public addresses only, within limits of time and size."""

from __future__ import annotations

import email.utils
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse
from dataclasses import dataclass

from .errors_moon import ImageError, describe

_MAX_REDIRECTS = 5
_CHUNK = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_IMAGE_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class TransientFetchError(ImageError):
    """Raised where a second attempt may succeed: a timeout, a broken connection, or a server that is busy.

    Args:
        reason (`str`): what was found.
        retry_after (`float` or `None`): the seconds after which the server wants to be asked again, if it says so.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True)
class _Target:
    """A URL whose host is resolved and checked; the connection goes to `address` only."""

    scheme: str
    host: str
    port: int
    address: str
    path: str


def _is_public(address: str) -> bool:
    """Return whether an address is a public unicast address, including IPv4 addresses embedded in IPv6."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.is_site_local:
            return False
        embedded = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            embedded.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        inner = [part for part in embedded if part is not None]
        if inner:
            return all(_is_public(str(part)) for part in inner)
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _check_url(url: str, allow_private: bool = False) -> _Target:
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError as error:
        raise ImageError(f"{describe(url)} is not a URL ({error})") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise ImageError(f"URL {describe(url)} is not fetched; expected http(s)://host/path")
    if parts.username is not None or parts.password is not None:
        raise ImageError("a URL with a user name or password is not fetched; expected http(s)://host/path")
    try:
        resolved = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        transient = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        kind = TransientFetchError if transient else ImageError
        raise kind(f"host {describe(parts.hostname)} cannot be resolved ({error})") from error
    addresses = [str(entry[4][0]) for entry in resolved]
    for address in addresses:
        if not (allow_private or _is_public(address)):
            raise ImageError(
                f"host {describe(parts.hostname)} has the non-public address {address}; expected public addresses"
            )
    query = f"?{parts.query}" if parts.query else ""
    path = urllib.parse.quote((parts.path or "/") + query, safe="/%:=&?~+!$,;'@()*[]")
    return _Target(parts.scheme, parts.hostname, port, addresses[0], path)


class _PinnedConnection(http.client.HTTPConnection):
    """A connection to the checked address under the host's name; a second resolution cannot redirect it."""

    def __init__(self, target: _Target, timeout: float) -> None:
        super().__init__(target.host, target.port, timeout=timeout)
        self.target = target
        self.open_socket: socket.socket | None = None  # http.client drops its own when the response begins
        self.default_port = 443 if target.scheme == "https" else 80

    def connect(self) -> None:
        self.sock = socket.create_connection((self.target.address, self.target.port), self.timeout)
        self.open_socket = self.sock
        if self.target.scheme == "https":
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.target.host)
            self.open_socket = self.sock

    def abort(self) -> None:
        if self.open_socket is not None:
            try:
                self.open_socket.shutdown(socket.SHUT_RDWR)
            except OSError:  # already closed
                return


def fetch(url: str, *, timeout_seconds: float, max_bytes: int, allow_private: bool = False) -> bytes:
    """Fetch the bytes of an image from a public address; they are not decoded.

    Args:
        url: an http(s) URL; up to 5 redirects are followed, each of which must lead to a public address.
        timeout_seconds: time for the whole call. Resolving the host's name is not limited.
        max_bytes: maximum size of the image.
        allow_private: also fetch from addresses that are not public, such as those of your own server. Default False.

    Raises:
        ImageError: an unsupported URL, a host without public addresses, a failed or slow request, or a response that is not
            an image, or is compressed, truncated or too long; `TransientFetchError` if a second attempt may succeed.
    """
    deadline = time.monotonic() + timeout_seconds
    start = url
    for _ in range(_MAX_REDIRECTS + 1):
        try:
            response = _request(_check_url(url, allow_private), deadline, max_bytes)
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = isinstance(error, TimeoutError) or time.monotonic() >= deadline
            why = f"timed out after {timeout_seconds} seconds" if late else f"failed ({error})"
            refused = isinstance(error, ssl.SSLCertVerificationError | http.client.InvalidURL)
            transient = late or (isinstance(error, OSError | http.client.HTTPException) and not refused)
            raise (TransientFetchError if transient else ImageError)(f"fetching {describe(url)} {why}") from error
        if isinstance(response, bytes):
            return response
        url = urllib.parse.urljoin(url, response)
    raise ImageError(f"{describe(start)} redirects more than {_MAX_REDIRECTS} times")


def _request(target: _Target, deadline: float, max_bytes: int) -> bytes | str:
    """Send one request and return the body, or the URL that it redirects to."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    connection = _PinnedConnection(target, remaining)
    # Socket time-outs apply to each read; the timer stops a server that sends single bytes slowly.
    timer = threading.Timer(remaining, connection.abort)
    timer.daemon = True
    timer.start()
    try:
        connection.request("GET", target.path, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
        response = connection.getresponse()
        location = response.getheader("Location")
        if response.status in (301, 302, 303, 307, 308) and location:
            return location
        return _read_body(response, deadline, max_bytes)
    finally:
        timer.cancel()
        connection.close()


def _read_body(response: http.client.HTTPResponse, deadline: float, max_bytes: int) -> bytes:
    if response.status != 200:
        reason = f"the server responded with {response.status} {response.reason}; expected 200 with an image"
        if response.status in _TRANSIENT:
            raise TransientFetchError(reason, _seconds(response.getheader("Retry-After")))
        raise ImageError(reason)
    kind = (response.getheader("Content-Type") or "image/").lower()
    if not kind.startswith(_IMAGE_TYPES):
        raise ImageError(f"the server sent {describe(kind)}; expected an image")
    encoding = (response.getheader("Content-Encoding") or "identity").lower()
    if encoding != "identity":
        raise ImageError(f"the server sent a body with encoding {describe(encoding)}; expected the image itself")
    body = bytearray()
    while chunk := response.read(min(_CHUNK, max_bytes + 1 - len(body))):
        body += chunk
        if len(body) > max_bytes:
            raise ImageError(f"more than {max_bytes} bytes; expected at most max_bytes={max_bytes}")
        if time.monotonic() >= deadline:
            raise TimeoutError
    if time.monotonic() >= deadline:
        raise TimeoutError
    if response.length:
        raise TransientFetchError(f"the body ended {response.length} bytes early (truncated); expected the whole image")
    return bytes(body)


def _seconds(header: str | None) -> float | None:
    """Return the seconds of a header Retry-After: a number, or the time until a date; None if it is neither."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
