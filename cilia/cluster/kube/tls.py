"""TLS contexts from PEM bytes, without leaving keys on a disk."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from cilia.cluster.kube.kubeconfig import ConfigError


def client_context(
    ca: bytes | None, certificate: bytes | None, key: bytes | None, *, insecure: bool = False
) -> ssl.SSLContext:
    """Return a context that trusts `ca` (the system's when None) and shows the client certificate, if any."""
    try:
        context = ssl.create_default_context(cadata=ca.decode("ascii") if ca else None)
        if insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if certificate is not None:
            if key is None:
                raise ConfigError("kubeconfig: a client certificate needs a client key")
            # OpenSSL reads files only: show it memory as one.
            with _memory(certificate) as certificate_path, _memory(key) as key_path:
                context.load_cert_chain(certificate_path, key_path)
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise ConfigError(f"kubeconfig: the certificates can't be used: {error}") from error
    return context


@contextmanager
def without_system_authorities() -> Iterator[None]:
    """Run a block for which this system's certificate authorities don't exist: reading them takes 50 ms."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(dict.fromkeys(names, os.devnull))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update(kept)


@contextmanager
def _memory(content: bytes) -> Iterator[str]:
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
