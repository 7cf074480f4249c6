"""Certificates, tokens and kubeconfig files of a state directory. Everything secret is written 0600.

The certificate authority belongs to one state directory and signs nothing but this server's certificate.
"""

from __future__ import annotations

import base64
import ipaddress
import secrets
import socket
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import yaml

from cilia.kit.files import private_directory, write_atomic

from .auth import Role, TokenFile, TokenRecord, digest, read_tokens

if TYPE_CHECKING:  # cryptography costs 10 MiB and is needed only when something is signed
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, GeneralName, KeyUsage

CA_LIFE: Final = timedelta(days=3650)
SERVER_LIFE: Final = timedelta(days=730)
TOKENS: Final = "tokens.json"


class Authority(msgspec.Struct, frozen=True):
    """Paths of what the server presents and its clients trust."""

    ca: Path
    certificate: Path
    key: Path


def make_authority(directory: Path, sans: Iterable[str] = ()) -> Authority:
    """The CA and server certificate of a state directory: kept if they still fit, made otherwise.

    ``sans`` are DNS names and addresses the server must be reachable under besides this machine's own names.
    """
    private_directory(directory)
    authority = Authority(directory / "ca.crt", directory / "server.crt", directory / "server.key")
    names = list(dict.fromkeys(["localhost", "kubernetes", "127.0.0.1", "::1", socket.gethostname(), *sans]))
    record = directory / "server.json"
    if not _fits(authority, record, names):
        _make(directory, authority, names)
        made = _Made(names, datetime.now(UTC) + SERVER_LIFE)
        write_atomic(record, msgspec.json.encode(made))
    return authority


class _Made(msgspec.Struct, frozen=True):
    """What the certificate on disk says; kept beside it, so that a restart needs no X.509 library."""

    names: list[str]
    expires: datetime


def _fits(authority: Authority, record: Path, names: list[str]) -> bool:
    if not all(path.exists() for path in (authority.ca, authority.certificate, authority.key, record)):
        return False
    made = msgspec.json.decode(record.read_bytes(), type=_Made)
    return set(names) <= set(made.names) and made.expires > datetime.now(UTC) + timedelta(days=30)


def _make(directory: Path, authority: Authority, names: list[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
        return key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    key_path = directory / "ca.key"
    if key_path.exists() and authority.ca.exists():
        ca_key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        ca = x509.load_pem_x509_certificate(authority.ca.read_bytes())
    else:
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca = _certificate("cilia-apiserver-ca", ca_key, None, []).sign(ca_key, hashes.SHA256())
        write_atomic(key_path, pem(ca_key))
        write_atomic(authority.ca, ca.public_bytes(serialization.Encoding.PEM))
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate("cilia-apiserver", key, ca, names).sign(ca_key, hashes.SHA256())
    write_atomic(authority.key, pem(key))
    write_atomic(authority.certificate, certificate.public_bytes(serialization.Encoding.PEM))


def _certificate(
    name: str, key: EllipticCurvePrivateKey, issuer: Certificate | None, names: list[str]
) -> CertificateBuilder:
    """An unsigned certificate: of the authority itself if there is no issuer, else of a server."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + (SERVER_LIFE if issuer else CA_LIFE))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if issuer is None:
        return builder.add_extension(_usage(signs=True), critical=True)
    signer = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        builder.add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(text) for text in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)
    )


def _usage(*, signs: bool) -> KeyUsage:
    from cryptography.x509 import KeyUsage

    return KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(text: str) -> GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def issue_token(directory: Path, user: str, role: Role, node: str = "") -> str:
    """Make a new token for a user and record it; a user's older tokens stop working."""
    if role == "agent" and not node:
        raise ValueError("an agent's token needs the name of its node")
    private_directory(directory)
    path = directory / TOKENS
    token = secrets.token_urlsafe(32)
    others = [record for record in read_tokens(path).tokens if record.user != user]
    record = TokenRecord(digest(token), user, role, node)
    write_atomic(path, msgspec.json.format(msgspec.json.encode(TokenFile([*others, record])), indent=2))
    return token


def write_kubeconfig(path: Path, server: str, ca: Path, token: str, user: str = "cilia") -> Path:
    """Write a kubeconfig that carries the CA and the token in itself."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "cilia",
                "cluster": {
                    "server": server,
                    "certificate-authority-data": base64.b64encode(ca.read_bytes()).decode(),
                },
            }
        ],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "cilia", "context": {"cluster": "cilia", "user": user}}],
        "current-context": "cilia",
    }
    write_atomic(path, yaml.safe_dump(content, sort_keys=False).encode())
    return path
