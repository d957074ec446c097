# SPDX-License-Identifier: Apache-2.0
"""Sign keys in a PKCS#11 token (SoftHSM, a smart card, an HSM): made inside, and never to be read from it.

The place is a URI of RFC 7512: `pkcs11:token=LABEL?module-path=/usr/lib/…/lib….so`. The PIN comes from
DRE_DBOX_KEY_PASSPHRASE_FILE. The file of a key holds the name (CKA_ID) of the object.
"""

import re
import secrets
import sys
from typing import Any
from urllib.parse import unquote

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from dre import run
from dre.errors import DreError, MissingError, UsageError

from dboxlib import places

VERSION = "dre-pkcs11/v1"
LABEL = "D-Box sign key"
_FILE = re.compile(VERSION + r"\nid ([0-9a-f]{32})\n")
# DigestInfo up to the digest (RFC 8017, 9.2 note 1): CKM_RSA_PKCS pads and signs what it is given.
_INFO = {
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "md5": bytes.fromhex("3020300c06082a864886f70d020505000410"),
}
_MAKE = """
import sys
from dboxlib.keystore_pkcs11 import Token
from dre.errors import DreError
try:
    sys.stdout.buffer.write(Token(sys.argv[1], sys.stdin.buffer.read()).make(int(sys.argv[2])))
except DreError as error:
    sys.exit(sys.stderr.write(f"{error}\\n") and error.code)
"""


class Token:
    """The keys of one token; one session for as long as it lives."""

    def __init__(self, uri: str, pin: bytes | None) -> None:
        self._module, self._label = _parse(uri)
        self._uri = uri
        if pin is None:
            raise UsageError("DRE_DBOX_KEY_STORE=pkcs11:… needs the PIN in DRE_DBOX_KEY_PASSPHRASE_FILE")
        self._pin = pin.decode(errors="replace")
        self._library: Any = None
        self._open: Any = None

    def make(self, bits: int) -> bytes:
        """A fresh key inside the token; root has it made by the D-Box's user, who shall be able to use it."""
        if places.owner() is not None:
            return self._made_by_user(bits)
        pkcs11, session = self._session()
        name = secrets.token_bytes(16)
        both = [(pkcs11.CKA_TOKEN, pkcs11.CK_TRUE), (pkcs11.CKA_ID, name), (pkcs11.CKA_LABEL, LABEL)]
        public = [
            *both,
            (pkcs11.CKA_MODULUS_BITS, bits),
            (pkcs11.CKA_PUBLIC_EXPONENT, (0x01, 0x00, 0x01)),
            (pkcs11.CKA_VERIFY, pkcs11.CK_TRUE),
        ]
        private = [
            *both,
            (pkcs11.CKA_PRIVATE, pkcs11.CK_TRUE),
            (pkcs11.CKA_SENSITIVE, pkcs11.CK_TRUE),
            (pkcs11.CKA_EXTRACTABLE, pkcs11.CK_FALSE),
            (pkcs11.CKA_SIGN, pkcs11.CK_TRUE),
        ]
        try:
            session.generateKeyPair(public, private, pkcs11.MechanismRSAGENERATEKEYPAIR)
        except pkcs11.PyKCS11Error as error:
            raise DreError(f"PKCS#11 token {self._label!r}: no key made: {error}") from None
        return f"{VERSION}\nid {name.hex()}\n".encode()

    def _made_by_user(self, bits: int) -> bytes:
        # A program of its own: a PKCS#11 module does not survive a fork.
        argv = ["setpriv", "--reuid", places.USER, "--regid", places.USER, "--init-groups"]
        argv += [sys.executable, "-c", _MAKE, self._uri, str(bits)]
        path = ":".join(part for part in sys.path if part)
        done = run.run(argv, stdin=self._pin.encode(), check=False, env={"PYTHONPATH": path})
        if done.returncode:
            kind = MissingError if done.returncode == MissingError.code else DreError
            raise kind(done.stderr.decode(errors="replace").strip().splitlines()[-1])
        return done.stdout

    def load(self, octets: bytes) -> "TokenKey":
        """The key that a file names."""
        pkcs11, session = self._session()
        name = _name(octets)
        found = {kind: self._find(name, kind) for kind in (pkcs11.CKO_PUBLIC_KEY, pkcs11.CKO_PRIVATE_KEY)}
        if not all(found.values()):
            raise DreError(f"PKCS#11 token {self._label!r}: no key {name.hex()} in it")
        wanted = [pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT]
        modulus, exponent = session.getAttributeValue(found[pkcs11.CKO_PUBLIC_KEY][0], wanted)
        numbers = rsa.RSAPublicNumbers(int.from_bytes(bytes(exponent), "big"), int.from_bytes(bytes(modulus), "big"))
        return TokenKey(pkcs11, session, found[pkcs11.CKO_PRIVATE_KEY][0], numbers.public_key(), self._label)

    def destroy(self, octets: bytes) -> None:
        """Destroy the key that a file names."""
        pkcs11, session = self._session()
        try:
            name = _name(octets)
        except DreError:
            return  # overwritten already, and before that the key was destroyed
        for kind in (pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY):
            for handle in self._find(name, kind):
                session.destroyObject(handle)

    def _find(self, name: bytes, kind: Any) -> list[Any]:
        pkcs11, session = self._session()
        return list(session.findObjects([(pkcs11.CKA_CLASS, kind), (pkcs11.CKA_ID, tuple(name))]))

    def _session(self) -> tuple[Any, Any]:
        """The module PyKCS11 and a session that is logged in."""
        try:
            import PyKCS11
        except ImportError:
            raise MissingError("python3-pykcs11 is not installed; apt-get install python3-pykcs11") from None
        if self._open is None:
            library = PyKCS11.PyKCS11Lib()
            try:
                library.load(self._module)
            except PyKCS11.PyKCS11Error as error:
                raise MissingError(f"{self._module}: not a PKCS#11 module that can be loaded: {error}") from None
            self._library = library  # its end would end the session
            self._open = self._login(PyKCS11, library)
        return PyKCS11, self._open

    def _login(self, pkcs11: Any, library: Any) -> Any:
        for slot in library.getSlotList(tokenPresent=True):
            if library.getTokenInfo(slot).label.strip() != self._label:
                continue
            session = library.openSession(slot, pkcs11.CKF_SERIAL_SESSION | pkcs11.CKF_RW_SESSION)
            try:
                session.login(self._pin)
            except pkcs11.PyKCS11Error as error:
                if error.value == pkcs11.CKR_PIN_INCORRECT:
                    raise DreError(f"PKCS#11 token {self._label!r}: wrong PIN") from None
                if error.value != pkcs11.CKR_USER_ALREADY_LOGGED_IN:
                    raise DreError(f"PKCS#11 token {self._label!r}: {error}") from None
            return session
        raise MissingError(f"{self._module}: no token {self._label!r} in it")


class TokenKey:
    """A private key in a token."""

    def __init__(self, pkcs11: Any, session: Any, handle: Any, public: rsa.RSAPublicKey, label: str) -> None:
        self._pkcs11 = pkcs11
        self._session = session
        self._handle = handle
        self._public = public
        self._label = label

    def public_key(self) -> rsa.RSAPublicKey:
        """Its public half."""
        return self._public

    def sign(self, data: bytes, _padding: padding.PKCS1v15, algorithm: hashes.HashAlgorithm, /) -> bytes:
        """RSA PKCS#1 v1.5 over the digest of *data*."""
        digest = hashes.Hash(algorithm)
        digest.update(data)
        mechanism = self._pkcs11.Mechanism(self._pkcs11.CKM_RSA_PKCS, None)
        try:
            return bytes(self._session.sign(self._handle, _INFO[algorithm.name] + digest.finalize(), mechanism))
        except self._pkcs11.PyKCS11Error as error:
            raise DreError(f"PKCS#11 token {self._label!r}: not signed: {error}") from None


def _parse(uri: str) -> tuple[str, str]:
    """Path of the module and label of the token."""
    path, _, query = uri.removeprefix("pkcs11:").partition("?")
    fields = dict(part.partition("=")[::2] for part in (*path.split(";"), *query.split("&")) if part)
    module, label = unquote(fields.pop("module-path", "")), unquote(fields.pop("token", ""))
    if not module.startswith("/") or not label or fields:
        raise UsageError(f"DRE_DBOX_KEY_STORE: expected pkcs11:token=LABEL?module-path=/PATH, got {uri!r}")
    return module, label


def _name(octets: bytes) -> bytes:
    match = _FILE.fullmatch(octets.decode(errors="replace"))
    if not match:
        raise DreError(f"not the name of a key in a PKCS#11 token: expected {VERSION!r}")
    return bytes.fromhex(match[1])
