"""`encrypted_content` of the responses API: thinking that a client keeps and sends back unread.

Clients that have `store` false carry a turn's thinking to the next request in this field, and some
of them in no other. Thinking is no secret here: the answer shows it beside this field, and whoever
asks may send any thinking as plain text. So the field is neither encrypted nor signed. A key would
protect nothing, and would have to be the same in all replicas and after a restart. A checksum tells
what was cut, changed or made by another server.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from gptoss.errors import Error, shown

_VERSION = "gptoss1."  # the dot is not a letter of base64url
_SUM_BYTES = 12


def encode_thinking(text: str) -> str:
    """Text as a value of `encrypted_content`: the version, and in base64url checksum and text."""
    data = text.encode("utf-8", errors="replace")
    return _VERSION + base64.urlsafe_b64encode(_checksum(data) + data).decode()


def decode_thinking(value: object) -> str:
    """The text that `encode_thinking` was given. Raises Error for anything else."""
    if not isinstance(value, str) or not value.startswith(_VERSION):
        raise Error(f"expected what this server has written, found {shown(value)}")
    try:
        raw = base64.b64decode(value[len(_VERSION) :], altchars=b"-_", validate=True)
        found, data = raw[:_SUM_BYTES], raw[_SUM_BYTES:]
        if found == _checksum(data) and _encoded_exactly(value, raw):
            return data.decode("utf-8")
    except (binascii.Error, ValueError):
        pass
    raise Error(f"expected what this server has written, found it damaged: {shown(value)}")


def _encoded_exactly(value: str, raw: bytes) -> bool:
    """Whether it is the one way to write these bytes; base64 has bits that decoders ignore."""
    return value == _VERSION + base64.urlsafe_b64encode(raw).decode()


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(_VERSION.encode() + data).digest()[:_SUM_BYTES]
