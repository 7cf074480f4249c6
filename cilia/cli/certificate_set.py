"""The certificates of Hubble as a set: one authority, and what servers, relays and viewers show each other.

    CA ─┬─ server         *.<cluster>.hubble-grpc.cilium.io    every node's observer
        ├─ relay-client   *.hubble-relay.cilium.io             the relay towards the nodes
        ├─ relay-server   *.hubble-relay.cilium.io             the relay towards its clients
        └─ ui-client      *.hubble-ui.cilium.io                the UI and people towards the relay

In a directory each has a folder of its own with tls.crt, tls.key and ca.crt, which a process can be pointed
at or a volume made of; in a cluster each is a Secret under the name that Cilium's charts give it.
"""

from __future__ import annotations

import base64
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cilia.cli.options import UserError
from cilia.kit import certificates
from cilia.kit.certificates import CertificateError, Facts, Issued
from cilia.kit.files import private_directory, remove_scratch, write_atomic

AUTHORITY = "ca"
FIRST = "server"
"""The folder whose ca.crt is written first."""
AUTHORITY_NAME = "Cilium CA"
AUTHORITY_SECRET = "cilium-ca"
KEY_MODE, PUBLIC_MODE = 0o600, 0o644


class Role(NamedTuple):
    """Who shows a certificate."""

    folder: str
    secret: str
    name: str
    server: bool


def roles(cluster: str) -> list[Role]:
    """All of them in one cluster."""
    return [
        Role(FIRST, "hubble-server-certs", f"*.{cluster.replace('.', '-')}.hubble-grpc.cilium.io", True),
        Role("relay-client", "hubble-relay-client-certs", "*.hubble-relay.cilium.io", False),
        Role("relay-server", "hubble-relay-server-certs", "*.hubble-relay.cilium.io", True),
        Role("ui-client", "hubble-ui-client-certs", "*.hubble-ui.cilium.io", False),
    ]


class Set(NamedTuple):
    """An authority and what it signed."""

    authority: Issued
    bundle: bytes
    """PEM of the authorities that are good: this one, and one that it follows."""
    issued: Mapping[Role, Issued]


def make(
    cluster: str, *, now: float, days: float, authority_days: float, authority: Issued | None = None
) -> Set:
    """A whole set; `authority`: one that there is already. Raises CertificateError."""
    authority = authority or certificates.make_authority(AUTHORITY_NAME, now=now, days=authority_days)
    issued = {role: _issue(authority, role, now=now, days=days) for role in roles(cluster)}
    return Set(authority, authority.certificate, issued)


def _issue(authority: Issued, role: Role, *, now: float, days: float) -> Issued:
    return certificates.issue(
        authority, role.name, now=now, days=days, server=role.server, client=not role.server
    )


def write(directory: Path, made: Set) -> None:
    """Put a set into a directory that has none. Raises UserError."""
    with _alone(directory):
        # A key without its certificate is what a killed predecessor leaves: nothing was signed with it.
        if (directory / AUTHORITY / "ca.key").exists() and any(
            (directory / folder / "ca.crt").exists() for folder in (AUTHORITY, FIRST)
        ):
            raise UserError(
                f"{directory} has an authority already: renew its certificates with "
                f"`cilia hubble certs renew {directory}`, or choose another directory"
            )
        _write_authority(directory, made.authority)
        for role, issued in made.issued.items():
            _write_one(directory, role, issued, made.bundle)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Nobody else writes this set meanwhile; what killed writers left is gone. Raises UserError."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"somebody else is changing {directory} right now: try again") from None
        for folder in (AUTHORITY, *(role.folder for role in roles(""))):
            remove_scratch(directory / folder)
        yield
    finally:
        os.close(descriptor)


def renew(
    directory: Path, cluster: str, *, now: float, days: float, within: float, authority_days: float | None
) -> list[str]:
    """Renew the certificates with fewer than `within` days left; which. With `authority_days` a new authority
    signs all, and the old one stays good until it ends. Raises UserError and CertificateError."""
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory: name one that `cilia hubble certs make` made")
    with _alone(directory):
        return _renew(directory, cluster, now=now, days=days, within=within, authority_days=authority_days)


def _renew(
    directory: Path, cluster: str, *, now: float, days: float, within: float, authority_days: float | None
) -> list[str]:
    authority, bundle = _read_authority(directory), _bundle(directory, now)
    if authority_days is not None:
        authority = certificates.make_authority(AUTHORITY_NAME, now=now, days=authority_days)
        bundle = authority.certificate + bundle
        # Everybody must trust the new authority before anybody shows a certificate of it.
        for role in roles(cluster):
            write_atomic(directory / role.folder / "ca.crt", bundle, mode=PUBLIC_MODE)
        _write_authority(directory, authority)
    elif not _owns(directory / AUTHORITY / "ca.crt", directory / AUTHORITY / "ca.key"):
        _write_authority(directory, authority)
    renewed = []
    for role in _present_roles(directory, cluster):
        if authority_days is not None or _days_left(directory / role.folder, now) < within:
            _write_one(directory, role, _issue(authority, role, now=now, days=days), bundle)
            renewed.append(role.folder)
    return renewed


class Shown(NamedTuple):
    """A file and what its first certificate says, or why it can't be read."""

    path: Path
    facts: Facts | None
    error: str = ""


def show(paths: Iterable[Path]) -> list[Shown]:
    """The certificates in files, and in the directories under which they are."""
    found = []
    for path in paths:
        for file in _below(path) if path.is_dir() else [path]:
            try:
                found += [Shown(file, facts) for facts in certificates.read(file.read_bytes())]
            except (CertificateError, OSError) as error:
                found.append(Shown(file, None, getattr(error, "strerror", None) or str(error)))
    return found


def _below(directory: Path) -> list[Path]:
    """Certificates in a directory. As Kubernetes mounts a Secret, each file is there under its name and once
    more in a folder called `..` and a date."""
    found = sorted(directory.rglob("*.crt"))
    return [file for file in found if not str(file.relative_to(directory)).startswith("..")]


def manifests(made: Set, namespace: str) -> list[dict[str, Any]]:
    """Secrets for `kubectl apply`."""
    authority = {"ca.crt": made.bundle, "ca.key": made.authority.key}
    found = [_secret(AUTHORITY_SECRET, namespace, "Opaque", authority)]
    for role, issued in made.issued.items():
        data = {"ca.crt": made.bundle, "tls.crt": issued.certificate, "tls.key": issued.key}
        found.append(_secret(role.secret, namespace, "kubernetes.io/tls", data))
    return found


def _secret(name: str, namespace: str, kind: str, data: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": kind,
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def _write_authority(directory: Path, authority: Issued) -> None:
    private_directory(directory / AUTHORITY)
    write_atomic(directory / AUTHORITY / "ca.key", authority.key, mode=KEY_MODE)
    write_atomic(directory / AUTHORITY / "ca.crt", authority.certificate, mode=PUBLIC_MODE)


def _write_one(directory: Path, role: Role, issued: Issued, bundle: bytes) -> None:
    folder = directory / role.folder
    private_directory(folder)
    write_atomic(folder / "ca.crt", bundle, mode=PUBLIC_MODE)
    write_atomic(folder / "tls.key", issued.key, mode=KEY_MODE)
    write_atomic(folder / "tls.crt", issued.certificate, mode=PUBLIC_MODE)


def _read_authority(directory: Path) -> Issued:
    """The authority of a set, also where a killed writer had replaced its key and not yet its certificate:
    everybody trusts that already."""
    key, certificate = (directory / AUTHORITY / name for name in ("ca.key", "ca.crt"))
    trusted = directory / FIRST / "ca.crt"
    try:
        secret = key.read_bytes()
        known = [file.read_bytes() for file in (certificate, trusted) if file.exists()]
    except OSError as error:
        raise UserError(
            f"{error.filename} can't be read ({error.strerror}): become its owner, "
            f"or make a set with `cilia hubble certs make {directory}`"
        ) from error
    for one in certificates.split(b"".join(known)):
        if certificates.belongs(one, secret):
            return Issued(certificate=one, key=secret)
    raise UserError(
        f"{key} is not the key of {certificate}: bring back the one that is, "
        f"or move {directory} away and make a set with `cilia hubble certs make {directory}`"
    )


def read_authority(certificate: Path, key: Path) -> Issued:
    """An authority from its files. Raises UserError."""
    try:
        return Issued(certificate=certificate.read_bytes(), key=key.read_bytes())
    except OSError as error:
        raise UserError(
            f"{error.filename} can't be read ({error.strerror}): name the files of an authority"
        ) from error


def _bundle(directory: Path, now: float) -> bytes:
    """What servers trust today, without what has ended."""
    path = directory / FIRST / "ca.crt"
    text = path.read_bytes() if path.exists() else (directory / AUTHORITY / "ca.crt").read_bytes()
    parts = certificates.split(text) or certificates.split((directory / AUTHORITY / "ca.crt").read_bytes())
    return b"".join(part for part in parts if certificates.read(part)[0].until > now)


def _present_roles(directory: Path, cluster: str) -> list[Role]:
    """Roles with the names that their certificates have; of one that can't be read, as in `cluster`."""
    found = []
    for role in roles(cluster):
        try:
            facts = certificates.read((directory / role.folder / "tls.crt").read_bytes())[0]
        except (CertificateError, OSError):
            found.append(role)
        else:
            found.append(role._replace(name=facts.subject))
    return found


def _days_left(folder: Path, now: float) -> float:
    """Of a certificate; one without its own key, and a file that is none, have no days left."""
    try:
        left = certificates.read((folder / "tls.crt").read_bytes())[0].days_left(now)
    except (CertificateError, OSError):
        return 0.0
    return left if _owns(folder / "tls.crt", folder / "tls.key") else 0.0


def _owns(certificate: Path, key: Path) -> bool:
    """Whether both files are there and belong together."""
    try:
        return certificates.belongs(certificate.read_bytes(), key.read_bytes())
    except OSError:
        return False
