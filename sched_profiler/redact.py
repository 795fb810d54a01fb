"""Keeps credentials out of everything that people and files get to see.

A credential may stand in a URL, or in the environment, where storage clients look for it. Errors of
those clients sometimes repeat one, so their texts are passed through here before they go on.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["is_url", "redacted", "without_credentials"]

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# With its user and its query, in a text that may quote it.
_URL_IN_TEXT = re.compile(
    r"([a-z][a-z0-9+.-]*://)([^\s'\"/@]+@)?([^\s'\"?]*)(\?[^\s'\"]*)?", re.IGNORECASE
)
_TELLING_NAME = re.compile(
    r"SECRET|TOKEN|PASSW|CREDENTIAL|ACCESS_KEY|ACCOUNT_KEY|API_KEY|CONNECTION_STRING|SIGNATURE"
)
# Shorter values are no secrets, and taking them out would garble the text.
_SHORTEST = 4
# These write the name of a container where others have the name of a user.
_AZURE = ("abfs", "abfss", "wasb", "wasbs", "az", "adl")


def is_url(name: str) -> bool:
    """Tell whether a name is the URL of a store, not a path on this machine."""
    return _URL.match(name) is not None


def without_credentials(name: str) -> str:
    """Return a URL without user, password, query and fragment; anything else as it is."""
    if not is_url(name):
        return name
    parts = urlsplit(name)
    user, at, host = parts.netloc.rpartition("@")
    if at and parts.scheme.lower() in _AZURE and ":" not in user:
        host = parts.netloc
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def redacted(text: str, *urls: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return `text` without credentials: `***` stands for them.

    Known are those of `urls` and of the environment; of any other URL, user and query are left out.
    """
    secrets = {value for url in urls for value in _secrets_of_url(url)}
    secrets |= {value for name, value in environ.items() if _TELLING_NAME.search(name.upper())}
    # Longest first: one secret may be part of another.
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, "***")
    return _URL_IN_TEXT.sub(_veiled, text)


def _veiled(match: re.Match[str]) -> str:
    scheme, user, rest, query = match.groups()
    return f"{scheme}{'***@' if user else ''}{rest}{'?***' if query else ''}"


def _secrets_of_url(url: str) -> set[str]:
    if without_credentials(url) == url:
        return set()
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    name, _, password = user.partition(":")
    found = {user, password, parts.query, parts.fragment}
    if password or parts.scheme.lower() not in _AZURE:
        found.add(name)
    found |= {pair.partition("=")[2] for pair in re.split("[&;]", parts.query)}
    return (found | {unquote(value) for value in found}) - {""}
