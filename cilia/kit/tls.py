"""TLS whose certificates may be replaced while it runs.

    tls = ServerTls(TlsFiles(cert, key, client_ca))
    ...
    session = tls.context().wrap_bio(...)          # for each connection

Ask for `context()` anew for each connection: it looks at the files (once a second at most) and reads them
again when one was replaced, be it by a rename or by a swapped symbolic link as Kubernetes does with Secrets.
What can't be read leaves the old context in force, and is said once. TLS 1.3 only; a server always demands a
certificate of its client. There are no session tickets: with them, somebody whose certificate has expired or
whose authority was withdrawn could return.
"""

from __future__ import annotations

import abc
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cilia.kit.clock import Clock, SystemClock
from cilia.kit.files import Stamp, read_regular, stamp

if TYPE_CHECKING:
    from cilia.kit.certificates import Facts

log = structlog.get_logger(__name__)

LOOK_INTERVAL = 1.0
"""Seconds between two looks at the files."""
NOTICE = 7 * 86400.0
"""Seconds before the end of a certificate from which on each load warns."""

LARGEST = 4 << 20
"""Bytes of a file of certificates or a key: thousands of authorities."""

GRPC = ("h2",)
"""Application protocols (ALPN) of gRPC."""


class TlsError(Exception):
    """Files that make no TLS context; its text is a sentence that says which and what to do."""


@dataclass(frozen=True)
class TlsFiles:
    """Where keys and certificates are, all PEM."""

    certificate: Path | None
    """Own certificate, then those between it and its authority. None: a client that shows none."""
    key: Path | None
    """The private key of `certificate`, without a passphrase."""
    authorities: Path | tuple[Path, ...] | None = None
    """Files with certificates of authorities the other side's is checked against. None: the system's."""

    @property
    def bundles(self) -> tuple[Path, ...]:
        """The files of authorities."""
        if self.authorities is None:
            return ()
        return self.authorities if isinstance(self.authorities, tuple) else (self.authorities,)

    def paths(self) -> list[Path]:
        """All files there are to watch."""
        return [path for path in (self.certificate, self.key, *self.bundles) if path is not None]


class Reloading(abc.ABC):
    """A TLS context that follows its files; what servers and clients share."""

    def __init__(
        self, files: TlsFiles, *, protocols: Sequence[str] = GRPC, clock: Clock | None = None
    ) -> None:
        """Reads the files; raises TlsError."""
        if (files.certificate is None) != (files.key is None):
            raise TlsError("a certificate needs its key and a key its certificate: give both files, or none")
        self.files = files
        self._protocols = list(protocols)
        self._clock = clock or SystemClock()
        self.problem = ""
        """Why the files that are there now are not in force."""
        self._seen = self._stamps()
        self._context = self._load()
        self._looked = self._clock.monotonic()

    facts: Facts | None
    """Of the own certificate in force; None: there is none."""

    def context(self) -> ssl.SSLContext:
        """For the next connection, with what the files hold now."""
        self.look()
        return self._context

    def look(self) -> None:
        """Read the files again if one was replaced; at most once a second."""
        now = self._clock.monotonic()
        if now - self._looked < LOOK_INTERVAL:
            return
        self._looked = now
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self._context = self._load()
        except TlsError as error:
            self.problem = str(error)
            log.warning("new certificates can't be used, the old ones stay in force", error=self.problem)
        else:
            self.problem = ""
            log.info("certificates reloaded", certificate=self.sentence())

    def seconds_left(self) -> float | None:
        """Until the own certificate ends, negative when it has; None: there is none."""
        return None if self.facts is None else self.facts.until - self._clock.wall()

    def sentence(self) -> str:
        """Whose certificate this is and how long it holds."""
        if self.facts is None:
            return "no certificate of its own"
        return self.facts.sentence(self._clock.wall())

    def _load(self) -> ssl.SSLContext:
        context = self._bare()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.options |= ssl.OP_NO_TICKET
        context.set_alpn_protocols(self._protocols)
        if self.files.certificate and self.files.key:
            facts = _own_certificate(context, self.files.certificate, self.files.key)
        else:
            facts = None
        for path in self.files.bundles:
            _authorities(context, path)
        self.facts = facts
        self.warn()
        return context

    def warn(self) -> None:
        """Say so in the log when the own certificate ends soon, or has."""
        left = self.seconds_left()
        if left is not None and left < NOTICE:
            log.warning("this certificate must be renewed", certificate=self.sentence())

    @abc.abstractmethod
    def _bare(self) -> ssl.SSLContext:
        """A context of this side's kind, without what all sides have in common."""

    def _stamps(self) -> list[Stamp | None]:
        return [stamp(path) for path in self.files.paths()]


class ServerTls(Reloading):
    """What a server shows, and whom it admits: who has a certificate of one of `files.authorities`."""

    def __init__(
        self,
        files: TlsFiles,
        *,
        protocols: Sequence[str] = GRPC,
        clock: Clock | None = None,
        admit_all: bool = False,
    ) -> None:
        """Reads the files; raises TlsError. `admit_all`: clients need no certificate, for they show who they
        are in another way; then there are no authorities."""
        self._admit_all = admit_all and not files.bundles
        if files.certificate is None or not (files.bundles or admit_all):
            raise TlsError(
                "a TLS server needs a certificate, its key and the authority of its clients: give all three"
            )
        super().__init__(files, protocols=protocols, clock=clock)

    def _bare(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_NONE if self._admit_all else ssl.CERT_REQUIRED
        context.num_tickets = 0
        return context


class ClientTls(Reloading):
    """What a client shows, and which server it trusts: one whose certificate names `server_name`."""

    def __init__(
        self,
        files: TlsFiles,
        server_name: str = "",
        *,
        protocols: Sequence[str] = GRPC,
        clock: Clock | None = None,
    ) -> None:
        """Reads the files; raises TlsError. `server_name`: empty: the host that is called."""
        super().__init__(files, protocols=protocols, clock=clock)
        self.server_name = server_name

    def _bare(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if not self.files.bundles:
            context.load_default_certs()
        return context


def server_name(node: str, cluster: str) -> str:
    """The name in the certificate of a node's observer; dots of names become dashes, so that one wildcard
    covers a cluster."""
    return f"{node.replace('.', '-')}.{cluster.replace('.', '-')}.hubble-grpc.cilium.io"


def _own_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> Facts:
    # Imported late: who has no certificate is spared 10 MiB and a quarter of a second.
    from cilia.kit import certificates

    for path in (certificate, key):
        _look_at(path)
    try:
        # An empty passphrase: OpenSSL would ask the terminal for one.
        context.load_cert_chain(certificate, key, password="")
        return certificates.read(certificate.read_bytes())[0]
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(
                f"{key} is not the key of {certificate}: give a certificate and its own key"
            ) from error
        raise TlsError(
            f"{certificate} and {key} are no certificate and key in PEM ({_words(error)}): make them anew"
        ) from error
    except certificates.CertificateError as error:
        raise TlsError(f"{certificate}: {error}") from error
    except OSError as error:
        raise TlsError(
            f"{certificate} or {key} can't be read ({error.strerror}): mount or make them"
        ) from error


def _authorities(context: ssl.SSLContext, path: Path) -> None:
    _look_at(path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise TlsError(
            f"{path} has no certificate of an authority ({_words(error)}): make it anew"
        ) from error
    except OSError as error:
        raise TlsError(f"{path} can't be read ({error.strerror}): mount or make it") from error


def _look_at(path: Path) -> None:
    """Raise TlsError for what OpenSSL would wait for or read without end: a pipe, a device, a huge file."""
    try:
        if len(read_regular(path, LARGEST)) > LARGEST:
            raise TlsError(f"{path} has more than {LARGEST >> 20} MiB: give a file with certificates only")
    except OSError as error:
        raise TlsError(f"{path} can't be read ({error.strerror}): mount or make it") from error


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def refusal(error: ssl.SSLError) -> str:
    """Why a handshake failed, as the end of a sentence: what the other side has to change."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused ({error.verify_message}): renew it, or use the right authority"
    reason = error.reason or ""
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it shows no certificate: give it one of this server's authority"
    if reason in ("HTTP_REQUEST", "WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "UNEXPECTED_MESSAGE"):
        return "it does not speak TLS here: connect with TLS"
    if reason in ("UNSUPPORTED_PROTOCOL", "NO_SUITABLE_KEY_SHARE", "NO_SHARED_CIPHER"):
        return f"it offers no TLS 1.3 ({_words(error)}): use a newer client"
    if "ALERT_CERTIFICATE_EXPIRED" in reason:
        return "it refused this side's certificate, which has expired: renew it"
    if "ALERT" in reason:
        return f"it refused this side ({_words(error)}): compare the authorities of both sides"
    return f"the handshake failed ({_words(error)}): compare the certificates of both sides"
