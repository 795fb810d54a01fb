"""Credentials that are planted, and must not show up anywhere."""

from __future__ import annotations

__all__ = ["IN_ENVIRON", "IN_URL", "URL"]

IN_URL = ("planted-user", "planted-password", "planted-query")
IN_ENVIRON = {
    "AWS_SECRET_ACCESS_KEY": "planted-secret-key",
    "AWS_ACCESS_KEY_ID": "planted-access-key-id",
    "AZURE_STORAGE_CONNECTION_STRING": "planted-connection-string",
    "HF_TOKEN": "planted-token",
}
URL = "talkative://planted-user:planted-password@host/logs/?sig=planted-query"
