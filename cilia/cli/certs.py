"""`cilia hubble certs ...`: make, renew and look at the certificates between nodes, relay and viewers."""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import yaml

from cilia.cli import certificate_set
from cilia.cli.options import Output, UserError, group
from cilia.cli.output import Format, print_data, print_table
from cilia.kit.certificates import CertificateError, moment
from cilia.kit.clock import SystemClock

certs = group("Make, renew and show certificates.")

Cluster = Annotated[str, typer.Option("--cluster", help="Name of the cluster, as the agents have it.")]
Days = Annotated[float, typer.Option("--days", min=0.01, help="How long certificates hold.")]
AuthorityDays = Annotated[float, typer.Option("--ca-days", min=0.01, help="How long a new authority holds.")]
WARN_DAYS = 30


class Making(enum.StrEnum):
    """Where to a new set goes."""

    DIRECTORY = "directory"
    YAML = "yaml"


@certs.callback()
def certs_group() -> None:
    """Make, renew and show certificates."""


@certs.command("make", short_help="Make an authority and all certificates.")
def make(
    directory: Annotated[
        Path | None, typer.Argument(help="Where to; it is made.", show_default=False)
    ] = None,
    cluster: Cluster = "default",
    days: Days = 365.0,
    ca_days: AuthorityDays = 1095.0,
    ca_cert: Annotated[
        Path | None, typer.Option("--ca-cert", help="Certificate of an authority to use; PEM.")
    ] = None,
    ca_key: Annotated[Path | None, typer.Option("--ca-key", help="Its key; PEM, elliptic curve.")] = None,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Of the Secrets.")] = "kube-system",
    output: Annotated[
        Making, typer.Option("--output", "-o", help="yaml: Secrets, to standard output.")
    ] = Making.DIRECTORY,
) -> None:
    """Make an authority, and what nodes, relay and viewers show each other, into a directory or as Secrets.

    \b
    Examples:
      cilia hubble certs make /etc/cilia/certs
      cilia hubble certs make -o yaml | kubectl apply -f -
      cilia-agent --hubble-tls-cert-file /etc/cilia/certs/server/tls.crt \\
                  --hubble-tls-key-file /etc/cilia/certs/server/tls.key \\
                  --hubble-tls-client-ca-files /etc/cilia/certs/server/ca.crt
    """
    if (directory is None) == (output is Making.DIRECTORY):
        raise UserError("name a directory, or print Secrets with -o yaml; one of the two")
    if (ca_cert is None) != (ca_key is None):
        raise UserError("--ca-cert and --ca-key belong together: give both, or none for a new authority")
    authority = certificate_set.read_authority(ca_cert, ca_key) if ca_cert and ca_key else None
    with told():
        made = certificate_set.make(
            cluster, now=SystemClock().wall(), days=days, authority_days=ca_days, authority=authority
        )
        if directory is None:
            yaml.safe_dump_all(certificate_set.manifests(made, namespace), sys.stdout, sort_keys=False)
            return
        certificate_set.write(directory, made)
    for role in made.issued:
        typer.echo(f"{directory / role.folder}: {role.name}")
    typer.echo(f"Keep {directory / certificate_set.AUTHORITY / 'ca.key'} to yourself: it makes certificates.")


@certs.command("renew", short_help="Renew certificates that end soon.")
def renew(
    directory: Annotated[Path, typer.Argument(help="Where `make` put them.")],
    cluster: Annotated[
        str, typer.Option("--cluster", help="Of certificates that can't be read; others keep their names.")
    ] = "default",
    days: Days = 365.0,
    within: Annotated[
        float, typer.Option("--within", min=0, help="Renew those with fewer days left.")
    ] = WARN_DAYS,
    everything: Annotated[bool, typer.Option("--all", help="Renew all of them.")] = False,
    new_authority: Annotated[
        bool, typer.Option("--ca", help="Make a new authority, too; the old one stays good until it ends.")
    ] = False,
    ca_days: AuthorityDays = 1095.0,
) -> None:
    """Renew certificates; processes that use them take up the new ones by themselves.

    \b
    Examples:
      cilia hubble certs renew /etc/cilia/certs
      cilia hubble certs renew /etc/cilia/certs --ca
    """
    with told():
        renewed = certificate_set.renew(
            directory,
            cluster,
            now=SystemClock().wall(),
            days=days,
            within=float("inf") if everything else within,
            authority_days=ca_days if new_authority else None,
        )
    typer.echo(f"Renewed: {', '.join(renewed)}." if renewed else f"All hold longer than {within:g} days.")


class Row(msgspec.Struct, kw_only=True, rename="kebab"):
    """A certificate, for programs."""

    file: str
    subject: str = ""
    names: tuple[str, ...] = ()
    issuer: str = ""
    usages: tuple[str, ...] = ()
    authority: bool = False
    until: str = ""
    days_left: float | None = None
    error: str = ""


@certs.command("show", short_help="Show whose certificates these are and until when.")
def show(
    paths: Annotated[list[Path], typer.Argument(help="Files, or directories with *.crt.")],
    output: Output = Format.TABLE,
) -> None:
    """Show subject, names and end of certificates; exit code 1 if one has ended or can't be read.

    \b
    Examples:
      cilia hubble certs show /etc/cilia/certs
      cilia hubble certs show tls.crt -o json
    """
    now = SystemClock().wall()
    rows = [_row(shown, now) for shown in certificate_set.show(paths)]
    if output is not Format.TABLE:
        print_data(rows, output)
    else:
        print_table(
            ("FILE", "SUBJECT", "NAMES", "FOR", "UNTIL", "DAYS LEFT"),
            (
                (row.file, row.subject or row.error, row.names, _purpose(row), row.until, _days(row))
                for row in rows
            ),
            empty="There is no certificate here.",
        )
    if any(row.error or (row.days_left or 0) <= 0 for row in rows):
        raise typer.Exit(1)


def _row(shown: certificate_set.Shown, now: float) -> Row:
    facts = shown.facts
    if facts is None:
        return Row(file=str(shown.path), error=shown.error)
    return Row(
        file=str(shown.path),
        subject=facts.subject,
        names=facts.names,
        issuer=facts.issuer,
        usages=facts.usages,
        authority=facts.authority,
        until=moment(facts.until),
        days_left=round(facts.days_left(now), 1),
    )


def _purpose(row: Row) -> str:
    return "authority" if row.authority else ", ".join(row.usages)


def _days(row: Row) -> str | None:
    if row.days_left is None:
        return None
    if row.days_left <= 0:
        return f"ended {int(-row.days_left)} days ago"
    return f"{int(row.days_left)}{' (renew)' if row.days_left < WARN_DAYS else ''}"


@contextmanager
def told() -> Iterator[None]:
    """Errors of certificates and files as the user's."""
    try:
        yield
    except CertificateError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(
            f"{error.filename} can't be used ({error.strerror}): choose another place, or become its owner"
        ) from error
