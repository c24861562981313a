"""Certificates for tests of TLS where trustme is missing (its cryptography has no build for PyPy): by the openssl tool.

`Authority` and `Certificate` have as much of `trustme.CA` and `trustme.LeafCert` as the tests use.
"""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

_CONFIGURATION = """\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[certificate]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyAgreement
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


def _make(folder: Path, name: str, section: str, *options: str) -> tuple[Path, Path]:
    configuration = folder / "configuration"
    configuration.write_text(_CONFIGURATION)
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-days", "2", "-nodes", "-newkey", "ec"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-config", str(configuration), "-extensions", section]
    command += ["-keyout", str(key), "-out", str(certificate), *options]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return certificate, key


class Certificate:
    """A certificate that an `Authority` has issued, and its key."""

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain = chain
        self._key = key

    def configure_cert(self, context: ssl.SSLContext) -> None:
        context.load_cert_chain(self._chain, self._key)


class Authority:
    """An authority that nobody trusts without being told; its files are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._issued = 0
        self._own, self._key = _make(folder, "authority", "authority", "-subj", "/CN=The tests' authority")

    def issue_cert(self, *names: str) -> Certificate:
        """Issue a certificate for host names and IPv4 addresses."""
        self._issued += 1
        kinds = {True: "IP", False: "DNS"}
        wanted = ",".join(f"{kinds[name[0].isdigit()]}:{name}" for name in names)
        signed = ("-CA", str(self._own), "-CAkey", str(self._key), "-subj", f"/CN={names[0]}")
        chain, key = _make(
            self._folder, str(self._issued), "certificate", *signed, "-addext", f"subjectAltName={wanted}"
        )
        return Certificate(chain, key)

    def configure_trust(self, context: ssl.SSLContext) -> None:
        context.load_verify_locations(self._own)
