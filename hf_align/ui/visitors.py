"""Who a visitor is where nobody has to sign in: a random name that the server signed.

The page keeps it and sends it along, also where a browser keeps no cookies inside another site's
frame. It tells one visitor's votes from another's and nothing else: anyone can get another one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from typing import Any

from hf_align.ui.sign_in import SignIn, SpaceSignIn, on_space

HEADER = "x-hf-align-visitor"


@dataclass(frozen=True)
class Visitors:
    """Signed names of visitors; those who signed in by name are known by that one.

    Attributes:
        secret: Signs the names; with another one visitors are new.
        named: How accounts are known, where people may sign in.
    """

    secret: str
    named: SignIn | None = None

    @property
    def on_space(self) -> bool:
        """Whether there is a button to sign in with."""
        return self.named is not None

    def account(self, request: Any) -> str | None:
        """Whom a request comes from: `hf:name`, `visitor:...`, or None for nobody known."""
        named = None if self.named is None else self.named.account(request)
        if named is not None:
            return named
        name, _, signature = str(request.headers.get(HEADER, "")).partition(".")
        if not name.isascii() or not signature.isascii():
            return None
        right = hmac.compare_digest(signature, self._signature(name))
        return f"visitor:{name}" if name and right else None

    def new(self) -> str:
        """A name that nobody has yet, signed."""
        name = secrets.token_hex(8)
        return f"{name}.{self._signature(name)}"

    def _signature(self, name: str) -> str:
        key = hmac.digest(self.secret.encode(), b"hf_align.ui.visitors", hashlib.sha256)
        return hmac.digest(key, name.encode(), hashlib.sha256).hex()


def visitors_here(secret: str) -> Visitors:
    """Visitors of this app: on a Space with OAuth those may sign in who want to."""
    signs_in = on_space() and "OAUTH_CLIENT_ID" in os.environ
    return Visitors(secret, SpaceSignIn() if signs_in else None)
