"""Real etcd for tests: one member or several, with their data in memory."""

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Self

from tests.lab import image
from tests.lab.place import wait_until
from tests.lab.release import Release, own_release

_CLIENTS, _PEERS = 2379, 2380
_LOCAL = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates: of an authority, and one that it signed, for any address of the test."""

    ca: Path
    certificate: Path
    key: Path


def certificates(place: Path, *addresses: str) -> Tls:
    """Make an authority, and a certificate for these addresses."""
    names = ",".join(f"IP:{address}" for address in addresses)
    tls = Tls(place / "ca.pem", place / "etcd.pem", place / "etcd-key.pem")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    # What Python asks of them from 3.13 on (VERIFY_X509_STRICT).
    uses = ["-addext", "keyUsage=critical,keyCertSign,cRLSign", "-subj", "/CN=ca", "-days", "30"]
    _openssl(place, "req", "-x509", *key, "-keyout", "ca-key.pem", "-out", "ca.pem", *uses)
    _openssl(place, "req", *key, "-keyout", "etcd-key.pem", "-out", "etcd.csr", "-subj", "/CN=etcd")
    (place / "names").write_text(f"subjectAltName={names}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
    signed = ["-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "30", "-extfile", "names"]
    _openssl(place, "x509", "-req", "-in", "etcd.csr", "-out", "etcd.pem", *signed)
    return tls


def _openssl(place: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=place, check=True, capture_output=True)  # noqa: S603, S607  own words


@dataclass(slots=True)
class Etcd:
    """One member. `enter` are the words that start a program where it is to run, `peers` the URLs of all by name.

    `programs` is where etcd and etcdctl are, other than the machine's own; `options` are more words for etcd.
    """

    name: str = "one"
    address: str = _LOCAL
    enter: tuple[str, ...] = ()
    peers: Mapping[str, str] = field(default_factory=dict)
    tls: Tls | None = None
    programs: Path | None = None
    options: tuple[str, ...] = ()
    data: Path = field(default_factory=lambda: Path(mkdtemp(prefix="etcd-", dir="/dev/shm")))
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"{'http' if self.tls is None else 'https'}://{self.address}:{_CLIENTS}"

    @property
    def peer_url(self) -> str:
        """Where the other members find it."""
        return f"http://{self.address}:{_PEERS}"

    def start(self) -> None:
        """Begin; whether it answers is another matter, where it is one of several."""
        listens = [f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}"]
        joins = [f"--listen-peer-urls={self.peer_url}", f"--initial-advertise-peer-urls={self.peer_url}"]
        cluster = [f"--initial-cluster={self._cluster}", f"--name={self.name}", f"--data-dir={self.data}/data"]
        tls = [] if self.tls is None else [f"--cert-file={self.tls.certificate}", f"--key-file={self.tls.key}"]
        # It ends with the tests, however these end.
        argv = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            *self.enter,
            self._program("etcd"),
            *listens,
            *joins,
            *cluster,
            *tls,
            "--log-level=error",
            *self.options,
        ]
        with (self.data / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)  # noqa: S603

    def _program(self, name: str) -> str:
        return name if self.programs is None else str(self.programs / name)

    def ctl(self, *words: str, user: str = "", text: str = "") -> str:
        """Run etcdctl with it; the text is what a value `-` would be."""
        tls = [] if self.tls is None else [f"--cacert={self.tls.ca}"]
        who = [f"--user={user}"] if user else []
        argv = [*self.enter, self._program("etcdctl"), f"--endpoints={self.url}", *tls, *who, *words]
        environment = os.environ | {"ETCDCTL_API": "3"}
        done = subprocess.run(argv, env=environment, input=text.encode(), capture_output=True, check=True)  # noqa: S603
        return done.stdout.decode()

    def permit(self, user: str, password: str, prefix: str) -> None:
        """Have it ask for users, and give one the keys below a prefix; `root:root` is another, who may do all."""
        for words in (
            *("user add root:root", f"user add {user}:{password}", "role add table", f"user grant-role {user} table"),
            f"role grant-permission table --prefix=true readwrite {prefix}",
            *("user grant-role root root", "auth enable"),
        ):
            self.ctl(*words.split())

    def save(self, snapshot: Path) -> None:
        """Copy its state into a file."""
        self.ctl("snapshot", "save", str(snapshot))

    def restore(self, snapshot: Path) -> None:
        """Put it back to such a state, while it does not run."""
        shutil.rmtree(self.data / "data")
        words = [f"--name={self.name}", f"--initial-cluster={self._cluster}", f"--data-dir={self.data}/data"]
        self.ctl("snapshot", "restore", str(snapshot), f"--initial-advertise-peer-urls={self.peer_url}", *words)

    @property
    def _cluster(self) -> str:
        return ",".join(f"{name}={url}" for name, url in ({self.name: self.peer_url} | dict(self.peers)).items())

    @property
    def version(self) -> str:
        """What it is: `etcd 3.4.23`."""
        told = subprocess.run([self._program("etcd"), "--version"], capture_output=True, text=True, check=True)  # noqa: S603
        return f"etcd {told.stdout.splitlines()[0].split()[-1]}"

    def wait_answers(self) -> None:
        """Wait until it answers, which takes a leader."""
        wait_until(self._answers, lambda: f"etcd answers: {(self.data / 'log').read_text()[-2000:]}", interval=0.05)

    def _answers(self) -> bool:
        with suppress(subprocess.CalledProcessError):
            self.ctl("get", "/", "--command-timeout=1s")
            return True
        return False

    @property
    def pid(self) -> int:
        """Its process number."""
        assert self._process is not None
        return self._process.pid

    def freeze(self) -> None:
        """Stop it where it is, connections and all."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it."""
        if self._process is not None:
            os.killpg(self._process.pid, number)

    def stop(self) -> None:
        """End it at once; its data stay."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """End it, and delete its data."""
        self.stop()
        shutil.rmtree(self.data, ignore_errors=True)


class Relay:
    """Another way to a member, which a test can cut; a context manager.

    `ahead_of_watch` is done once, before the member hears of the next watch.
    """

    def __init__(self, store: Etcd) -> None:
        self.ahead_of_watch: Callable[[], object] | None = None
        self._store, self._is_open = store, True
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._silent: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def __enter__(self) -> Self:
        """Begin."""
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """End, with all connections."""
        self._server.shutdown(socket.SHUT_RDWR)
        for end in (self._server, *(end for pair in self._pairs for end in pair)):
            end.close()

    def silence(self) -> None:
        """Let nothing more come on the connections that there are; others are made and used as before."""
        self._silent.update(member for _, member in self._pairs)

    def close(self) -> None:
        """Let nothing through until it is opened."""
        self._is_open = False
        self._silent.update(end for pair in self._pairs for end in pair)

    def open(self) -> None:
        """Let connections be made again."""
        self._is_open = True

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                if not self._is_open:
                    client.close()
                    continue
                member = socket.create_connection((self._store.address, _CLIENTS))
                self._pairs.append((client, member))
                for ends in ((client, member), (member, client)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if b"/v3/watch" in data and self.ahead_of_watch is not None:
                    do, self.ahead_of_watch = self.ahead_of_watch, None
                    do()
                if source not in self._silent:
                    to.sendall(data)


@contextmanager
def running(*members: Etcd) -> Iterator[Sequence[Etcd]]:
    """Start members that are one cluster, wait until they answer, and remove them at the end."""
    try:
        for member in members:
            member.start()
        for member in members:
            member.wait_answers()
        yield members
    finally:
        for member in members:
            member.remove()


def cluster(
    addresses: Sequence[str], enter: Callable[[int], tuple[str, ...]], tls: Tls | None, programs: Path | None = None
) -> list[Etcd]:
    """Give members that belong together, one for each address."""
    peers = {f"etcd{number}": f"http://{address}:{_PEERS}" for number, address in enumerate(addresses)}
    return [
        Etcd(f"etcd{number}", address, enter(number), peers, tls, programs) for number, address in enumerate(addresses)
    ]


def programs_of(release: Release) -> Path | None:
    """Say where the programs of a release are; `None` for those that are installed on the machine."""
    return None if release is own_release() else image.etcd(release)
