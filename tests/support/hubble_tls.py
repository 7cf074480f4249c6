"""An authority of the tests, and files of what it signs."""

from __future__ import annotations

import ssl
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from cilia.kit import certificates
from cilia.kit.certificates import Issued
from cilia.kit.clock import SystemClock
from cilia.kit.tls import TlsFiles, server_name

SERVER_NAME = server_name("worker-1", "default")
CLIENT_NAME = "*.hubble-relay.cilium.io"
DAY = 86400.0


class Authority:
    """A CA whose certificates and those it signs begin `ago` days ago and hold `days`."""

    def __init__(self, name: str = "Test CA") -> None:
        self._now = SystemClock().wall()
        self.issued = certificates.make_authority(name, now=self._now - 100 * DAY, days=1000)

    def server(self, *, ago: float = 0, days: float = 30, name: str = SERVER_NAME) -> Issued:
        """A certificate of a node; of worker-1 unless told."""
        return certificates.issue(self.issued, name, now=self._now - ago * DAY, days=days, client=False)

    def client(self, *, ago: float = 0, days: float = 30) -> Issued:
        """A certificate of a relay."""
        return certificates.issue(
            self.issued, CLIENT_NAME, now=self._now - ago * DAY, days=days, server=False
        )

    def write(self, directory: Path, issued: Issued) -> TlsFiles:
        """Put a certificate, its key and this authority's certificate into files, each in one step."""
        directory.mkdir(parents=True, exist_ok=True)
        contents = {"tls.crt": issued.certificate, "tls.key": issued.key, "ca.crt": self.issued.certificate}
        for name, content in contents.items():
            (directory / f".{name}").write_bytes(content)
            (directory / f".{name}").rename(directory / name)
        return TlsFiles(directory / "tls.crt", directory / "tls.key", directory / "ca.crt")


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """Both ends in memory; gives the server's. Raises SSLError of the end that refuses first."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    return ends[1]


def signed_by(pem: bytes, authority: bytes) -> bool:
    """Whether the first certificate of a file is signed by another's first."""
    child, parent = x509.load_pem_x509_certificate(pem), x509.load_pem_x509_certificate(authority)
    try:
        child.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature):  # Another name, algorithm, key.
        return False
    return True
