"""Web addresses: what is asked for, with which credentials, and what of it may be shown."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

from ktllama.errors import ModelFileError

SCHEMES = ("https", "http")
_PORTS = {"https": 443, "http": 80}
_KEPT_IN_PATHS = "/%:@!$&'()*+,;=~"
_KEPT_IN_QUERIES = _KEPT_IN_PATHS + "?[]"


@dataclass(frozen=True, slots=True)
class Address:
    """``url`` holds no credentials; ``authorization`` is the header to send to this scheme, host and port only."""

    url: str
    authorization: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The address without its query, which may be a signature."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")) + ("?…" if parts.query else "")

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        parts = urlsplit(self.url)
        return parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme]

    @property
    def file_name(self) -> str:
        """The last part of the path."""
        name = unquote(urlsplit(self.url).path).rpartition("/")[2]
        return "".join(c if c.isprintable() else "_" for c in name)

    def sibling(self, file_name: str) -> Address:
        """The file of that name in the same folder, with the same query and credentials."""
        parts = urlsplit(self.url)
        path = parts.path.rpartition("/")[0] + "/" + quote(file_name)
        return Address(urlunsplit(parts._replace(path=path)), self.authorization)

    def redirected(self, location: str) -> Address:
        """Where a redirect leads. Credentials go along to the same origin only.

        Raises:
            ModelFileError: when it leaves https, or leads to no address.
        """
        target = parse(urljoin(self.url, location), shown=self.shown, doing="redirects to")
        if self.origin[0] == "https" and target.origin[0] != "https":
            raise ModelFileError(self.shown, f"redirects from https to {target.origin[0]}, which is refused")
        return Address(target.url, self.authorization if target.origin == self.origin else None)


def parse(text: str, *, shown: str | None = None, doing: str = "is") -> Address:
    """An address as people write it; ``user:password@`` becomes its authorization.

    ``shown`` names what led here, in errors, and ``doing`` how.

    Raises:
        ModelFileError: for what is no http or https address.
    """
    parts, port = _split(text)
    if parts is None or parts.scheme not in SCHEMES or not parts.hostname:
        name = shown if shown is not None else _without_secrets(text)
        raise ModelFileError(name, f"{doing} no address that can be read; expected https://HOST/FILE.gguf")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if port is None else f"{host}:{port}"
    path, query = quote(parts.path or "/", safe=_KEPT_IN_PATHS), quote(parts.query, safe=_KEPT_IN_QUERIES)
    return Address(urlunsplit((parts.scheme, netloc, path, query, "")), _basic(parts))


def _split(text: str) -> tuple[SplitResult | None, int | None]:
    try:
        parts = urlsplit(text)
        if not all(c.isalnum() or c in ".-_:" for c in parts.hostname or ""):
            return None, None
        return parts, parts.port
    except ValueError:  # a bad port, a bad IPv6 host
        return None, None


def _basic(parts: SplitResult) -> str | None:
    if parts.username is None:
        return None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _without_secrets(text: str) -> str:
    """``text``, which is no address, without what stands before an @ or behind a question mark."""
    scheme, separator, rest = text.partition("://")
    shown = scheme + separator + rest.partition("?")[0].rpartition("@")[2]
    return "".join(c if c.isprintable() else "_" for c in shown)
