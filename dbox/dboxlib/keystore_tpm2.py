# SPDX-License-Identifier: Apache-2.0
"""Sign keys of a TPM 2.0: made in it, and kept as a blob that this TPM alone can use (the form of tpm2-openssl).

The place is `tpm2:` and the TCTI of tpm2-tss: `tpm2:device:/dev/tpmrm0`, `tpm2:swtpm:host=127.0.0.1,port=2321`. A TPM
signs some ten times a second, and many know no key above 2048 bits.

A TPM has room for three objects. /dev/tpmrm0 shares it among processes and forgets what one that was killed had loaded;
a TPM without a resource manager is made empty here when it is full. Then another one's key may be gone or its place
taken: every signature is verified before it is given, and made once more where it is not the key's.
"""

import atexit
import contextlib
import functools
import operator
import os
import threading
from collections.abc import Callable
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils
from dre.errors import DreError, MissingError

SHA256 = utils.Prehashed(hashes.SHA256())


class Tpm:
    """The keys of one TPM; one at a time is loaded."""

    def __init__(self, tcti: str, secret: bytes | None) -> None:
        self._tcti = tcti or "device:/dev/tpmrm0"
        self._secret = secret
        self._open: Any = None
        self._loaded: tuple[bytes, Any] | None = None
        self._one = threading.Lock()  # a connection to a TPM is no thing for two threads

    def make(self, bits: int) -> bytes:
        """A fresh key: the blob that the TPM made."""
        tss, context, tsskey = self._context()
        kinds = ("USERWITHAUTH", "SIGN_ENCRYPT", "FIXEDTPM", "FIXEDPARENT", "SENSITIVEDATAORIGIN")
        attributes = functools.reduce(operator.or_, (getattr(tss.TPMA_OBJECT, kind) for kind in kinds))
        secret = tss.TPM2B_SENSITIVE_CREATE()
        if self._secret is not None:
            secret.sensitive.userAuth = self._secret
        template = tss.TPM2B_PUBLIC.parse(f"rsa{bits}:rsassa-sha256:null", objectAttributes=attributes)

        def create(parent: Any) -> Any:
            return context.create(parent, secret, template, tss.TPM2B_DATA(), tss.TPML_PCR_SELECTION())

        with self._one:
            try:
                private, public, *_ = self._with_room(lambda: self._below(create))
            except tss.TSS2_Exception as error:
                raise DreError(f"TPM {self._tcti}: no RSA key of {bits} bits made: {error}") from None
        return bytes(tsskey.TSSPrivKey(private, public, self._secret is None).to_pem())

    def load(self, octets: bytes) -> "TpmKey":
        """The key of a blob; the TPM is asked when it signs."""
        tss, _, tsskey = self._context()
        try:
            blob = tsskey.TSSPrivKey.from_pem(octets)
            public = serialization.load_pem_public_key(blob.public.to_pem())
        except (ValueError, TypeError, KeyError, tss.TSS2_Exception) as error:
            raise DreError(f"not a key of a TPM: {error}") from None
        if not isinstance(public, rsa.RSAPublicKey):
            raise DreError("the sign key is not an RSA key")
        if not blob.empty_auth and self._secret is None:
            raise DreError("the sign key has a passphrase; DRE_DBOX_KEY_PASSPHRASE_FILE names the file with it")
        return TpmKey(self, octets, blob, public)

    def destroy(self, octets: bytes) -> None:
        """The TPM keeps nothing; the blob is overwritten as other files are."""

    def sign(self, octets: bytes, blob: Any, public: rsa.RSAPublicKey, digest: bytes) -> bytes:
        """Sign a SHA-256 digest with the key of a blob, whose other half is *public*."""
        tss, _, _ = self._context()
        with self._one:
            try:
                if self._loaded is not None and self._loaded[0] == octets:
                    with contextlib.suppress(tss.TSS2_Exception, InvalidSignature):  # another one made room
                        return self._sign(self._loaded[1], public, digest)
                return self._sign(self._load(octets, blob), public, digest)
            except (tss.TSS2_Exception, InvalidSignature) as error:
                raise DreError(f"TPM {self._tcti}: not signed: {str(error) or 'by another key'}") from None

    def _sign(self, handle: Any, public: rsa.RSAPublicKey, digest: bytes) -> bytes:
        tss, context, _ = self._context()
        scheme = tss.TPMT_SIG_SCHEME(scheme=tss.TPM2_ALG.NULL)  # the key's own
        ticket = tss.TPMT_TK_HASHCHECK(tag=tss.TPM2_ST.HASHCHECK, hierarchy=tss.TPM2_RH.NULL)
        made = context.sign(handle, tss.TPM2B_DIGEST(digest), scheme, ticket)  # owns the octets below it
        value = bytes(made.signature.rsassa.sig)
        public.verify(value, digest, padding.PKCS1v15(), SHA256)
        return value

    def _load(self, octets: bytes, blob: Any) -> Any:
        """The key loaded, in the place of the one before."""
        _, context, _ = self._context()
        self._unload()
        handle = self._with_room(lambda: self._below(lambda parent: context.load(parent, blob.private, blob.public)))
        if self._secret is not None:
            context.tr_set_auth(handle, self._secret)
        self._loaded = octets, handle
        return handle

    def _below(self, call: Callable[[Any], Any]) -> Any:
        """What *call* gives for the storage key, which is loaded for it alone."""
        parent = self._parent()
        try:
            return call(parent)
        finally:
            self._flush(parent)

    def _unload(self) -> None:
        if self._loaded is not None:
            handle, self._loaded = self._loaded[1], None
            self._flush(handle)

    def _flush(self, handle: Any) -> None:
        tss, context, _ = self._context()
        with contextlib.suppress(tss.TSS2_Exception):  # it is gone already
            context.flush_context(handle)

    def _with_room(self, call: Callable[[], Any]) -> Any:
        """What *call* gives; once more with an empty TPM where that is full of what others left."""
        tss, context, _ = self._context()
        try:
            return call()
        except tss.TSS2_Exception as error:
            if error.rc & 0xFFF != tss.TPM2_RC.OBJECT_MEMORY:
                raise
        self._loaded = None
        _, there = context.get_capability(tss.TPM2_CAP.HANDLES, tss.TPM2_HC.TRANSIENT_FIRST, 64)
        for number in there.data.handles:
            with contextlib.suppress(tss.TSS2_Exception):
                context.flush_context(context.tr_from_tpmpublic(number))
        return call()

    def _parent(self) -> Any:
        """The storage key that the TPM derives from its seed: the same one each time."""
        tss, context, _ = self._context()
        wanted = ("RESTRICTED", "DECRYPT", "NODA", "USERWITHAUTH", "FIXEDTPM", "FIXEDPARENT", "SENSITIVEDATAORIGIN")
        attributes = functools.reduce(operator.or_, (getattr(tss.TPMA_OBJECT, kind) for kind in wanted))
        template = tss.TPM2B_PUBLIC.parse("ecc_nist_p256:aes128cfb", objectAttributes=attributes)
        handle, *_ = context.create_primary(
            tss.TPM2B_SENSITIVE_CREATE(),
            template,
            tss.ESYS_TR.RH_OWNER,
            tss.TPM2B_DATA(),
            tss.TPML_PCR_SELECTION(),
            session1=tss.ESYS_TR.PASSWORD,
        )
        return handle

    def _context(self) -> tuple[Any, Any, Any]:
        """tpm2_pytss, a connection, and the module of blobs."""
        os.environ.setdefault("TSS2_LOG", "all+none")  # tpm2-tss talks on stderr; the exception says it in one line
        try:
            import tpm2_pytss
            from tpm2_pytss import tsskey
        except ImportError:
            raise MissingError("python3-tpm2-pytss is not installed; apt-get install python3-tpm2-pytss") from None
        if self._open is None:
            try:
                self._open = tpm2_pytss.ESAPI(self._tcti)
                atexit.register(self._unload)
            except tpm2_pytss.TSS2_Exception as error:
                raise MissingError(f"TPM {self._tcti}: not there: {error}") from None
        return tpm2_pytss, self._open, tsskey


class TpmKey:
    """A private key that only the TPM can use."""

    def __init__(self, tpm: Tpm, octets: bytes, blob: Any, public: rsa.RSAPublicKey) -> None:
        self._tpm = tpm
        self._octets = octets
        self._blob = blob
        self._public = public

    def public_key(self) -> rsa.RSAPublicKey:
        """Its public half."""
        return self._public

    def sign(self, data: bytes, _padding: padding.PKCS1v15, algorithm: hashes.HashAlgorithm, /) -> bytes:
        """RSA PKCS#1 v1.5 over the SHA-256 of *data*."""
        if algorithm.name != "sha256":
            raise DreError(f"a key of a TPM signs SHA-256 only, not {algorithm.name}")
        digest = hashes.Hash(algorithm)
        digest.update(data)
        return self._tpm.sign(self._octets, self._blob, self._public, digest.finalize())
