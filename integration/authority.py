"""A certificate authority for one test, and the files that each program wants of it."""

import pathlib
import shutil

from stack import run


class Authority:
    """An authority in a folder of its own; names are files' names and what `openssl x509 -subject` says."""

    def __init__(self, folder, name):
        self.folder = pathlib.Path(folder) / name
        self.folder.mkdir(parents=True)
        self.ca = self.folder / "ca-cert.pem"
        self.make("ca", name, "-x509", "-days", "2", "-addext", "basicConstraints=critical,CA:TRUE", "-out", self.ca)

    def make(self, kind, subject, *more):
        run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-subj", f"/CN={subject}",
            "-keyout", self.folder / f"{kind}-key.pem", *more)

    def issue(self, kind, subject="127.0.0.1", names="IP:127.0.0.1,DNS:localhost"):
        """A certificate and its key, as files <kind>-cert.pem and <kind>-key.pem."""
        request, certificate = self.folder / f"{kind}.csr", self.folder / f"{kind}-cert.pem"
        self.make(kind, subject, "-addext", f"subjectAltName={names}", "-out", request)
        run("openssl", "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self.folder / "ca-key.pem", "-CAcreateserial",
            "-days", "2", "-copy_extensions", "copy", "-out", certificate)
        return certificate, self.folder / f"{kind}-key.pem"

    def client_folder(self, servers, has_certificate=True):
        """What libnbd and QEMU take: a folder with the authority of servers, and a client's certificate of ours."""
        folder = self.folder / f"for-clients-of-{servers.folder.name}{'' if has_certificate else '-without'}"
        folder.mkdir()
        shutil.copy(servers.ca, folder / "ca-cert.pem")
        if has_certificate:
            for path in self.issue("client", "client"):
                shutil.copy(path, folder)
        return folder
