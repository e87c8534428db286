"""Certificates for the tests of servers that speak TLS."""

from __future__ import annotations

from pathlib import Path

import trustme

from lockguard_lab.servers import TlsFiles

__all__ = ["issued"]


def issued(directory: Path, authority: trustme.CA) -> TlsFiles:
    """A server's certificate, its key and their authority, in a directory that is made."""
    directory.mkdir()
    files = TlsFiles(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(files.authority)
    certificate.private_key_pem.write_to_path(files.key)
    for part in certificate.cert_chain_pems:
        part.write_to_path(files.certificate, append=True)
    return files
