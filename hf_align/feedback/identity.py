"""Who an annotator is to the data, and proof that an item was handed to them.

A pseudonym is a keyed hash of project and account name: without the key nobody can tell who it is,
or try names until one fits. An assignment token is signed with a key derived from the same secret
and binds annotator, item, order and guideline version, so that it survives a restart of the server.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hf_align.feedback.texts import check_text
from hf_align.files import write_text
from hf_align.types import InputError

SECRET, _SECRET_FILE = "HF_ALIGN_SECRET", "secret"
MIN_SECRET = 16
MAX_TOKEN = 2048
_ROTATIONS = 97  # more than there are orders


class Refused(InputError):
    """An annotator's or lead's request that cannot be granted; one line to show them.

    Attributes:
        code: Which rule refused it: `token`, `unleased`, `answered`, `expired`, `paused`, `quiz`,
            `quota`, `done`, `role`, `closing`, `backlog`, `nothing_to_undo`, `secret`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Grant:
    """What a token proves: this item was handed to this annotator in this order."""

    lease_id: str
    revision: int
    project: str
    annotator: str
    item_id: str
    rotation: int
    is_repeat: bool
    guideline_version: int
    expires: float


class Keys:
    """Pseudonyms and tokens made with one secret.

    Args:
        secret: At least 16 characters, kept outside the store (a Space secret). With another one
            annotators get other pseudonyms and tokens already handed out are refused.

    Raises:
        InputError: The secret is too short.
    """

    def __init__(self, secret: str) -> None:
        if len(secret) < MIN_SECRET:
            raise InputError(f"secret: {len(secret)} characters, expected at least {MIN_SECRET}")
        self._names = self._derived(secret, "pseudonym")
        self._tokens = self._derived(secret, "token")
        self._orders = self._derived(secret, "order")
        self.fingerprint = self._derived(secret, "fingerprint").hex()[:16]

    @staticmethod
    def _derived(secret: str, purpose: str) -> bytes:
        return hmac.digest(secret.encode(), f"hf_align.feedback.{purpose}".encode(), hashlib.sha256)

    def pseudonym(self, project: str, account: str) -> str:
        """16 hexadecimal digits for an account (`hf:name`, `local:name`) in a project.

        Raises:
            InputError: The account name is empty or cannot be stored.
        """
        check_text("account", account, 200)
        if not account.strip():
            raise InputError("account: sign in first")
        message = json.dumps([project, account]).encode()
        return hmac.digest(self._names, message, hashlib.sha256).hex()[:16]

    def fraction(self, *parts: object) -> float:
        """A number in [0, 1) fixed by the parts: chance that a restart does not throw again."""
        message = json.dumps([str(part) for part in parts]).encode()
        return int.from_bytes(hmac.digest(self._orders, message, hashlib.sha256)[:7], "big") / 2**56

    def token(self, grant: Grant) -> str:
        """The grant, signed: base64url of its JSON, a dot, and an HMAC-SHA256."""
        # Which output is on which side stays hidden: items often name the same model first.
        hidden = replace(grant, rotation=(grant.rotation + self._mask(grant)) % _ROTATIONS)
        payload = base64.urlsafe_b64encode(json.dumps(asdict(hidden)).encode())
        return f"{payload.decode()}.{self._signature(payload)}"

    def grant(self, token: object) -> Grant:
        """What a token proves.

        Raises:
            Refused: It was not made with this secret (`token`).
        """
        if isinstance(token, str) and len(token) <= MAX_TOKEN and token.isascii():
            payload, _, signature = token.partition(".")
            if hmac.compare_digest(signature, self._signature(payload.encode())):
                try:
                    hidden = Grant(**json.loads(base64.urlsafe_b64decode(payload)))
                    rotation = (hidden.rotation - self._mask(hidden)) % _ROTATIONS
                    return replace(hidden, rotation=rotation)
                except (binascii.Error, ValueError, TypeError) as error:
                    raise Refused("token", "this task is of another version; reload") from error
        raise Refused("token", "this task was not handed out by this server; reload the page")

    def _mask(self, grant: Grant) -> int:
        return int(self.fraction("mask", grant.lease_id, grant.revision) * _ROTATIONS)

    def _signature(self, payload: bytes) -> str:
        return hmac.digest(self._tokens, payload, hashlib.sha256).hex()


def secret_of(folder: Path) -> str:
    """The secret of a folder's store: from the environment, or made once and kept beside it.

    Raises:
        OSError: It cannot be kept.
    """
    given = os.environ.get(SECRET)
    if given:
        return given
    file = folder / _SECRET_FILE
    if not file.exists():
        write_text(file, secrets.token_urlsafe(32) + "\n")
        file.chmod(0o600)
    return file.read_text(encoding="utf-8").strip()
