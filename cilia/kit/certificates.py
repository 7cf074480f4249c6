"""Makes and reads X.509 certificates (RFC 5280): an authority of one's own, and what it signs.

Keys are ECDSA P-256. Time is an argument, in seconds since the Unix epoch.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = 86400.0
BACKDATED = 300.0
"""Seconds a certificate holds before it is made: the clocks of a cluster differ."""
MAX_COMMON_NAME = 64
"""Characters of a common name (RFC 5280, ub-common-name)."""
PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class CertificateError(Exception):
    """What is no certificate or no authority; its text is a sentence."""


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a certificate says."""

    subject: str
    """Its common name, or its whole name without one."""
    issuer: str
    names: tuple[str, ...]
    """DNS names and addresses it stands for."""
    since: float
    until: float
    authority: bool
    usages: tuple[str, ...]
    """server, client."""

    def days_left(self, now: float) -> float:
        """Negative when it has ended."""
        return (self.until - now) / DAY

    def sentence(self, now: float) -> str:
        """`*.default.hubble-grpc.cilium.io until 2027-01-31 12:00 UTC (361 days left)`."""
        days = self.days_left(now)
        left = f"{int(days)} days left" if days >= 0 else f"expired {int(-days)} days ago"
        return f"{self.subject} until {moment(self.until)} ({left})"


def moment(seconds: float) -> str:
    """A time for people, in UTC."""
    return _utc(seconds).strftime("%Y-%m-%d %H:%M UTC")


def make_authority(name: str, *, now: float, days: float) -> Issued:
    """A self-signed authority that signs leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = _builder(subject, subject, key.public_key(), now, now + days * DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs=True), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
    )
    return _issued(builder.sign(key, hashes.SHA256()), key)


def issue(
    authority: Issued,
    name: str,
    *,
    now: float,
    days: float,
    names: Sequence[str] = (),
    server: bool = True,
    client: bool = True,
) -> Issued:
    """A certificate for `name` and `names`: DNS names, wildcards, addresses. It ends with its authority's at
    the latest.

    Raises CertificateError when `authority` is none or its key is another's.
    """
    parent, parent_key = _open(authority)
    end = parent.not_valid_after_utc.timestamp()
    if end <= now:
        raise CertificateError(
            f"the authority {_common_name(parent.subject)} ended {moment(end)}: make a new one"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + days * DAY, end)
    builder = _builder(_name(name), parent.subject, key.public_key(), now, until)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH] * server + [ExtendedKeyUsageOID.CLIENT_AUTH] * client
    stands_for = list(dict.fromkeys([name, *names]))
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(text) for text in stands_for]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(parent_key.public_key()), critical=False
        )
    )
    return _issued(builder.sign(parent_key, hashes.SHA256()), key)


def read(pem: bytes) -> list[Facts]:
    """What the certificates of a PEM file say, at least one. Raises CertificateError."""
    try:
        return [_facts(certificate) for certificate in x509.load_pem_x509_certificates(pem)]
    except ValueError as error:
        raise CertificateError(f"there is no certificate in PEM here ({error}): make it anew") from error


def split(pem: bytes) -> list[bytes]:
    """The certificates of a PEM file one by one, whatever stands between them and however lines end."""
    return [b"\n".join(found.splitlines()) + b"\n" for found in PEM.findall(pem)]


def belongs(certificate: bytes, key: bytes) -> bool:
    """Whether a key is that of the first certificate of a PEM file; not, if one of the two can't be read."""
    try:
        public = serialization.load_pem_private_key(key, password=None).public_key()
        return public == x509.load_pem_x509_certificate(certificate).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _open(authority: Issued) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(authority.certificate)
        key = serialization.load_pem_private_key(authority.key, password=None)
    except (ValueError, TypeError) as error:
        raise CertificateError(
            f"the authority's files are no certificate and key in PEM ({error}): make them anew"
        ) from error
    if not _facts(certificate).authority:
        raise CertificateError(
            f"the certificate of {_common_name(certificate.subject)} is no authority's: give the CA's"
        )
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise CertificateError(
            "the authority's key is not the (elliptic-curve) key of its certificate: give both of one CA"
        )
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, until: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_utc(min(now, until) - BACKDATED))
        .not_valid_after(_utc(until))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _issued(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Issued:
    return Issued(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def _facts(certificate: x509.Certificate) -> Facts:
    return Facts(
        subject=_common_name(certificate.subject),
        issuer=_common_name(certificate.issuer),
        names=_names(certificate),
        since=certificate.not_valid_before_utc.timestamp(),
        until=certificate.not_valid_after_utc.timestamp(),
        authority=_is_authority(certificate),
        usages=_usages(certificate),
    )


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return (*found.get_values_for_type(x509.DNSName), *addresses)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _usages(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return ()
    known = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}
    return tuple(word for word, oid in known.items() if oid in found)


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string()


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:MAX_COMMON_NAME])])


def _general(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError as error:
        raise CertificateError(
            f"{text!r} can't stand in a certificate: use letters, digits, dashes and dots"
        ) from error


def _utc(seconds: float) -> datetime.datetime:
    try:
        return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise CertificateError("a certificate ends before the year 10000: give fewer days") from error
