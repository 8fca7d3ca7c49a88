"""AWS's own addresses, for code that names them whatever AWS_ENDPOINT_URL says: the emulator as an HTTPS proxy.

A client with HTTPS_PROXY asks the proxy to CONNECT to a host. For a host of AWS the emulator ends TLS itself, with a
certificate of its own authority that AWS_CA_BUNDLE names; a connection to any other host is passed on as it is.
"""

import selectors
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock

import botocore
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
BUNDLE = "aws-ca-bundle.pem"
VALID = timedelta(days=30)
PIECE = 1 << 16


class Authority:
    """A certificate authority in a directory, which lives as long as the emulator."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SageMaker emulator")])
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._lock = Lock()
        own = self._certificate(self._name, self._key.public_key(), x509.BasicConstraints(ca=True, path_length=0))
        self.bundle = directory.absolute() / BUNDLE
        # The public authorities stay, so that a client which also calls AWS itself verifies it.
        public = Path(botocore.__file__).with_name("cacert.pem").read_bytes()
        self.bundle.write_bytes(public + b"\n" + own.public_bytes(serialization.Encoding.PEM))

    def context(self, host: str) -> ssl.SSLContext:
        """A server's TLS context with a certificate for the host."""
        with self._lock:
            if host not in self._contexts:
                self._contexts[host] = self._made(host)
            return self._contexts[host]

    def _made(self, host: str) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SageMaker emulator")])
        certificate = self._certificate(subject, key.public_key(), names)
        path = self._directory / f"tls-{len(self._contexts)}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.touch(mode=0o600)
        path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        path.unlink()
        return context

    def _certificate(
        self, subject: x509.Name, public: ec.EllipticCurvePublicKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=subject,
            public_key=public,
            serial_number=x509.random_serial_number(),
            not_valid_before=now - timedelta(days=1),
            not_valid_after=now + VALID,
        )
        ca = isinstance(extension, x509.BasicConstraints)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            builder.add_extension(extension, critical=ca)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )


def of_aws(host: str) -> bool:
    """Whether a host is an address of AWS."""
    return host.lower().endswith(DOMAINS)


def relay(client: socket.socket, host: str, port: int) -> None:
    """Copies bytes between a client and a host, until one of them closes. Raises OSError if the host is unreachable."""
    with socket.create_connection((host, port), 30) as server, selectors.DefaultSelector() as selector:
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        selector.register(client, selectors.EVENT_READ, server)
        selector.register(server, selectors.EVENT_READ, client)
        while True:
            for ready, _ in selector.select():
                source, target = ready.fileobj, ready.data
                assert isinstance(source, socket.socket)
                piece = source.recv(PIECE)
                if not piece:
                    return
                target.sendall(piece)
