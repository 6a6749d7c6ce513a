"""What the lab downloads once and keeps in a cache: Debians for hosts and for whole machines, what QEMU guests run.

An image is built in a temporary directory and renamed when it is whole, so an interrupted build never counts. Its name
holds a hash of what went into it; a changed package list makes a new image. Everything comes from the mirror the
machine's own apt uses.
"""

import fcntl
import functools
import hashlib
import itertools
import lzma
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab.command import LabError, run
from tests.lab.release import Release, own_release

CACHE = Path(os.environ.get("KVM_PORTFWD_LAB_CACHE", "/var/cache/kvm-portfwd-lab"))
_CERTIFICATES = Path("etc/ssl/certs/ca-certificates.crt")
_KERNEL_PACKAGE = "linux-image-cloud-amd64"
_AGENT_PACKAGE = "qemu-guest-agent"
# What an emulated machine has beyond the image of a whole one.
_APPARMOR_PACKAGE = "apparmor"
# Docker's daemon and what it starts, by package.
_DOCKER = {
    "docker.io": ("usr/sbin/dockerd", "usr/sbin/docker-proxy"),
    "containerd": ("usr/bin/containerd", "usr/bin/containerd-shim-runc-v2"),
    "runc": ("usr/sbin/runc",),
}
_OF_FIREWALLD = ("python3-cap-ng", "python3-dbus", "python3-firewall", "python3-gi", "python3-nftables")
# What publishes ports, besides Docker, and what it needs of Debian that a host may lack.
_PEERS = ("firewalld", "gir1.2-glib-2.0", "libgirepository-1.0-1", "netavark", *_OF_FIREWALLD)
# What bans, besides what a host has installed.
_BANNERS = ("fail2ban", "crowdsec-custom-bouncer", "crowdsec-firewall-bouncer")

_ETCD = {"etcd-server": "usr/bin/etcd", "etcd-client": "usr/bin/etcdctl"}
# Where `mirror` knows none.
_MIRROR = "http://deb.debian.org/debian"

_PACKAGE_LIST = Path(__file__).with_name("packages.txt")
_MACHINE = Path(__file__).with_name("machine")
# The daemon's libraries as Debian ships them: the oldest versions it supports are tested through these.
PYTHON_PACKAGES = (
    "python3",
    "python3-iptables",
    "python3-json5",
    "python3-libvirt",
    "python3-prometheus-client",
    "python3-pyroute2",
    "python3-rich",
    "python3-tomli",
    "python3-tomlkit",
    "python3-watchdog",
)


def host_packages() -> list[str]:
    """What a lab host needs from Debian."""
    return _listed(_PACKAGE_LIST)


def _listed(packages: Path) -> list[str]:
    return [line for line in packages.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def release_root(release: Release) -> Path:
    """The root directory of `release` with everything installed; the machine's own root if it runs that release."""
    if release is own_release():
        return Path("/")
    packages = (*host_packages(), *PYTHON_PACKAGES)
    return _cached(f"{release.directory}-{_key(*packages)}", lambda target: _build_root(target, release, packages))


def machine_root(release: Release) -> Path:
    """The root directory of a whole machine with systemd, the daemon's libraries, and the firewalls users run."""
    packages = (*host_packages(), *PYTHON_PACKAGES, *_listed(_MACHINE / "packages.txt"))
    key = _key(*packages, (_MACHINE / "setup.sh").read_text(encoding="utf-8"))
    return _cached(f"machine-{release.directory}-{key}", lambda target: _build_machine(target, release, packages))


@functools.cache
def compile_for(release: Release, source: Path, python: str) -> None:
    """Write the bytecode that hosts of `release`, which may only read the project's files, load the daemon from.

    Without it, each of its thousands of starts compiles a hundred modules: a tenth of a second of processor time. A
    checkout that cannot be written is no reason to fail.
    """
    compiling = 'mount --bind "$1" "$2/mnt" && exec chroot "$2" "$3" -m compileall -qq -s /mnt -p "$1" /mnt/fwdaemon'
    with _lock(f"bytecode-{release}"):
        run(["unshare", "--mount", "sh", "-c", compiling, "sh", source, release_root(release), python], check=False)


def guest_kernel() -> Path:
    """A directory with `vmlinuz` and the uncompressed modules of Debian's cloud kernel."""
    versioned = _kernel_package()
    return _cached(f"kernel-{_key(versioned, *MODULES)}", lambda target: _build_kernel(target, versioned))


def emulated_kernel() -> Path:
    """A directory for an emulator: `vmlinuz`, `initramfs`, and `system`, a disk with its modules and with AppArmor."""
    versioned = _kernel_package()
    script = (_MACHINE / "initramfs.sh").read_text(encoding="utf-8")
    return _cached(f"emulated-{_key(versioned, script)}", lambda target: _build_emulated_kernel(target, versioned))


def machine_disk(release: Release) -> Path:
    """A disk with the root directory of a whole machine, for an emulator."""
    root = machine_root(release)
    return _cached(f"disk-{root.name}", lambda target: make_disk(root, target / "disk")) / "disk"


def make_disk(root: Path, disk: Path) -> None:
    """Write what is below a directory to a disk that is only read; it takes no more room than that."""
    run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", root, disk, "4G"], timeout=300)


def guest_agent() -> Path:
    """A directory to be laid over a guest's root: Debian's QEMU guest agent, and the libraries it needs."""
    version = run(["apt-cache", "show", "--no-all-versions", _AGENT_PACKAGE]).stdout
    return _cached(f"agent-{_key(version)}", _build_agent)


def docker() -> Path:
    """A directory with Docker's daemon and what it starts, of the machine's own release, which run on either."""
    versions = run(["apt-cache", "show", "--no-all-versions", *_DOCKER]).stdout
    return _cached(f"docker-{_key(versions, *itertools.chain(*_DOCKER.values()))}", _build_docker)


def _build_docker(target: Path) -> None:
    for package, programs in _DOCKER.items():
        with _unpacked(package, target) as unpacked:
            for program in programs:
                (unpacked / program).rename(target / Path(program).name)


def etcd(release: Release) -> Path:
    """A directory with `etcd` and `etcdctl` as that release has them, which need nothing but the C library."""
    return _cached(f"etcd-{release.directory}", lambda target: _build_etcd(target, release))


def _build_etcd(target: Path, release: Release) -> None:
    source = f"deb {next(iter(mirror()), _MIRROR)} {release} main\n"
    with _apt_apart(target, source) as options:
        run(["apt-get", *options, "update"], timeout=600)
        for package, program in _ETCD.items():
            with _unpacked(package, target, *options) as unpacked:
                (unpacked / program).rename(target / Path(program).name)


@contextmanager
def _apt_apart(target: Path, source: str) -> Iterator[list[str]]:
    """Give the options with which apt knows this source alone, and leaves what the machine has in peace."""
    apart = target / "apt"
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (apart / directory).mkdir(parents=True)
    (apart / "sources.list").write_text(source, encoding="utf-8")
    places = {
        "Etc::SourceList": apart / "sources.list",
        "Etc::SourceParts": "/dev/null",
        "State": apart / "state",
        "State::status": "/dev/null",
        "Cache": apart / "cache",
    }
    yield [*_APT_AS_ROOT, *(f"-oDir::{name}={place}" for name, place in places.items())]
    shutil.rmtree(apart)


def banners() -> Path:
    """The root directory of fail2ban and CrowdSec's bouncers, of the machine's own release."""
    return _together("banners", _BANNERS)


def peers() -> Path:
    """The root directory of firewalld and netavark, of the machine's own release."""
    return _together("peers", _PEERS)


def _together(name: str, packages: Sequence[str]) -> Path:
    """A directory with the files of all these packages."""

    def build(target: Path) -> None:
        for package in packages:
            with _unpacked(package, target) as unpacked:
                shutil.copytree(unpacked, target, symlinks=True, dirs_exist_ok=True)

    versions = run(["apt-cache", "show", "--no-all-versions", *packages]).stdout
    return _cached(f"{name}-{_key(versions)}", build)


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _cached(name: str, build: Callable[[Path], None]) -> Path:
    final = CACHE / name
    if final.is_dir():
        return final
    with _lock(name):
        if not final.is_dir():
            partial = CACHE / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            build(partial)
            partial.rename(final)
    return final


@contextmanager
def _lock(name: str) -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def mirror() -> list[str]:
    """The http mirror of the machine's own apt; empty, to let debootstrap choose, where it has none it understands."""
    listed = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"]).stdout
    for line in listed.splitlines():
        uri, _, release = line.partition(" ")
        if release == own_release() and uri.startswith(("http://", "https://")):
            return [uri.rstrip("/")]
    return []


def _build_root(target: Path, release: Release, packages: tuple[str, ...]) -> None:
    # In a mount namespace of its own, so that nothing stays mounted below `target` whatever happens.
    # --include of the rest fails: debootstrap cannot order libvirt's post-installation scripts.
    base = ["--variant=minbase", "--include=ca-certificates", release, str(target), *mirror()]
    run(["unshare", "-m", "-p", "-f", "--kill-child", "debootstrap", *base], timeout=1200)
    shutil.copy(Path("/") / _CERTIFICATES, target / _CERTIFICATES)
    _install(target, packages)


def _install(target: Path, packages: tuple[str, ...]) -> None:
    with _apt_settings(target):
        _apt(target, "update")
        _apt(target, "install", "--yes", "--no-install-recommends", *packages)
        _apt(target, "clean")


def _build_machine(target: Path, release: Release, packages: tuple[str, ...]) -> None:
    if release is own_release():
        _build_root(target, release, packages)
    else:
        run(["cp", "--archive", "--reflink=auto", "--no-target-directory", release_root(release), target], timeout=300)
        _install(target, packages)
    run(["chroot", target, "sh", "-s"], stdin=(_MACHINE / "setup.sh").read_text(encoding="utf-8"), timeout=300)


@contextmanager
def _apt_settings(target: Path) -> Iterator[None]:
    """Lend the chroot the machine's proxy settings while it installs, and no service starts in it."""
    policy = target / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
    policy.chmod(0o755)
    shutil.copy("/etc/resolv.conf", target / "etc/resolv.conf")
    settings = target / "etc/apt/apt.conf.d/99lab"
    dump = run(["apt-config", "dump"]).stdout.splitlines()
    wanted = ("Acquire::http::Proxy ", "Acquire::https::Proxy ")
    settings.touch(mode=0o600)
    settings.write_text("\n".join(line for line in dump if line.startswith(wanted)) + "\n", encoding="utf-8")
    yield
    settings.unlink()
    policy.unlink()


def _apt(target: Path, *words: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    script = 'mount -t proc proc "$1/proc" && root=$1 && shift && exec chroot "$root" apt-get -q "$@"'
    namespaces = ["unshare", "-m", "-p", "-f", "--kill-child"]
    run([*namespaces, "sh", "-c", script, "sh", target, *words], timeout=1200, env=environment)


def _kernel_package() -> str:
    depends = run(["apt-cache", "depends", "--no-recommends", "--no-suggests", _KERNEL_PACKAGE]).stdout
    for line in depends.splitlines():
        if (name := line.partition("Depends:")[2].strip()).startswith("linux-image-"):
            return name
    raise LabError(f"apt knows no {_KERNEL_PACKAGE}; run apt-get update")


def _build_kernel(target: Path, package: str) -> None:
    with _unpacked(package, target) as unpacked:
        (image,) = (unpacked / "boot").glob("vmlinuz-*")
        image.rename(target / "vmlinuz")
        for module in unpacked.glob("**/modules/*/kernel/**/*.ko*"):
            _keep_module(module, target)


def _build_emulated_kernel(target: Path, package: str) -> None:
    system = target / "root"
    for name in (package, _APPARMOR_PACKAGE):
        with _unpacked(name, target) as unpacked:
            for part in unpacked.iterdir():
                # Links on the machine, which no directory is to cover.
                place = system / "usr" / part.name if part.name in {"bin", "lib", "sbin"} else system / part.name
                shutil.copytree(part, place, symlinks=True, dirs_exist_ok=True)
    (kernel,) = (system / "boot").glob("vmlinuz-*")
    # Newer releases compress them, which busybox cannot read.
    run(["find", system, "-name", "*.ko.xz", "-exec", "unxz", "{}", "+"], timeout=300)
    run(["depmod", "-b", system / "usr", kernel.name.removeprefix("vmlinuz-")], timeout=300)
    run(["sh", _MACHINE / "initramfs.sh", system / "usr/lib/modules", target / "initramfs"])
    kernel.rename(target / "vmlinuz")
    make_disk(system, target / "system")
    shutil.rmtree(system)


def _build_agent(target: Path) -> None:
    with _unpacked(_AGENT_PACKAGE, target) as unpacked:
        (target / "bin").mkdir()
        (unpacked / "usr/sbin/qemu-ga").rename(target / "bin/qemu-ga")
    # The machine has them: QEMU itself needs more.
    for library in re.findall(r"/\S+", run(["ldd", target / "bin/qemu-ga"]).stdout):
        place = target / library.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, place)


# Only this one user may read root's directories, so apt must not drop to its own user for a download.
_APT_AS_ROOT = ("-q", "-oAPT::Sandbox::User=root")


@contextmanager
def _unpacked(package: str, target: Path, *options: str) -> Iterator[Path]:
    """A Debian package's files, below `target` for as long as they are needed."""
    run(["env", "-C", target, "apt-get", *(options or _APT_AS_ROOT), "download", package], timeout=600)
    (archive,) = target.glob("*.deb")
    unpacked = target / "unpacked"
    run(["dpkg", "-x", archive, unpacked], timeout=300)
    yield unpacked
    shutil.rmtree(unpacked)
    archive.unlink()


def _keep_module(module: Path, target: Path) -> None:
    """Keep one module of the list QEMU guests load; newer releases compress them, which busybox cannot read."""
    name = module.name.partition(".")[0]
    if name not in MODULES:
        return
    content = module.read_bytes()
    plain = lzma.decompress(content) if module.suffix == ".xz" else content
    (target / f"{name}.ko").write_bytes(plain)


# In the order in which a guest loads them.
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_console",
)
