"""Keeps credentials out of everything that people and files get to see.

A credential may stand in a URL, or in the environment, where storage clients look for it. Errors of
those clients sometimes repeat one, so their texts are passed through here before they go on.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["is_url", "redacted", "split_url", "without_credentials"]

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"([^:]*|\[.*\])(:[0-9]*)?")
# With its user and its query, in a text that may quote it.
_URL_IN_TEXT = re.compile(
    r"([a-z][a-z0-9+.-]*://)([^\s'\"/@]+@)?([^\s'\"?]*)(\?[^\s'\"]*)?", re.IGNORECASE
)
_TELLING_NAME = re.compile(
    r"SECRET|TOKEN|PASSW|CREDENTIAL|ACCESS_KEY|ACCOUNT_KEY|API_KEY|PRIVATE_KEY|CONNECTION_STRING"
    r"|SIGNATURE|AUTHORIZATION|HEADERS"
)
# Shorter values are no secrets, nor are those of MAX_TOKENS and TOKENIZERS_PARALLELISM, and taking
# them out would garble the text.
_SHORTEST = 4
_PLAIN = re.compile(r"true|false|none|null|[0-9]{1,6}", re.IGNORECASE)
# These write the name of a container where others have the name of a user.
_AZURE = ("abfs", "abfss", "wasb", "wasbs", "az", "adl")


def is_url(name: str) -> bool:
    """Tell whether a name is the URL of a store, not a path on this machine."""
    return _URL.match(name) is not None


def without_credentials(name: str) -> str:
    """Return a URL without user, password, query and fragment; anything else as it is."""
    if not is_url(name):
        return name
    parts = split_url(name)
    return f"{parts.scheme}://{parts.host}{parts.path}"


@attrs.frozen
class UrlParts:
    """What a URL consists of, as it was written."""

    scheme: str
    user: str
    """With the password."""
    host: str
    path: str
    query: str
    fragment: str


def split_url(url: str) -> UrlParts:
    """Return the parts of a URL; a password may hold what it ought to have percent-encoded."""
    scheme, rest = _URL.fullmatch(url).groups()  # type: ignore[union-attr]  # callers pass a URL
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    user, at, host = authority.rpartition("@")
    if not _HOST.fullmatch(host):
        # No port: the head of a password that goes on up to the last @.
        user, at, rest = rest.rpartition("@")
        host = re.split("[/?#]", rest, maxsplit=1)[0]
    elif at and scheme.lower() in _AZURE and ":" not in user:
        user, host = "", authority
    else:
        rest = rest[len(user + at) :]
    rest, _, fragment = rest.partition("#")
    rest, _, query = rest.partition("?")
    return UrlParts(scheme, user, host, rest[len(host) :], query, fragment)


def redacted(text: str, *urls: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return `text` without credentials: `***` stands for them.

    Known are those of `urls` and of the environment; of any other URL, user and query are left out.
    """
    secrets = {value for url in urls for value in _secrets_of_url(url)}
    for name, value in environ.items():
        if _TELLING_NAME.search(name.upper()):
            secrets |= {value, *_secrets_of_headers(name, value)}
        elif is_url(value):
            secrets |= _secrets_of_url(value)
    # Longest first: one secret may be part of another.
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST and not _PLAIN.fullmatch(secret):
            text = text.replace(secret, "***")
    return _URL_IN_TEXT.sub(_veiled, text)


def _veiled(match: re.Match[str]) -> str:
    scheme, user, rest, query = match.groups()
    return f"{scheme}{'***@' if user else ''}{rest}{'?***' if query else ''}"


def _secrets_of_headers(name: str, value: str) -> set[str]:
    """Return the secrets in a variable such as `OTEL_EXPORTER_OTLP_HEADERS`: `name=value,...`."""
    if not name.upper().endswith("HEADERS"):
        return set()
    values = [unquote(pair.partition("=")[2]) for pair in value.split(",")]
    return {word for text in values for word in (text, *text.split())} - {"Basic", "Bearer"}


def _secrets_of_url(url: str) -> set[str]:
    if not is_url(url):
        return set()
    parts = split_url(url)
    found = {parts.user, *parts.user.split(":", 1), parts.query, parts.fragment}
    found |= {pair.partition("=")[2] for pair in re.split("[&;]", parts.query)}
    return (found | {unquote(value) for value in found}) - {""}
