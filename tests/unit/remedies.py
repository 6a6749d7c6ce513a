"""Cases of remedies: what is wrong, what is said of it, and what it opens once that was followed."""

from dataclasses import dataclass

from fwdaemon.config.model import Config
from fwdaemon.config.overlap import families_of_entry
from tests.unit.test_config_support import problems_of, read

WEB = '[[forward]]\ndomain = "web1"\n'
ENTRY_80 = f'{WEB}ports = ["80"]\n'
OPENS_80 = "*:80/tcp -> web1:80"
BOTH = "*:80/tcp -> web1:80; *:443/tcp -> web1:443"


@dataclass(frozen=True, slots=True)
class Case:
    """A text, what is said of it, the text after that was done, and where it then listens, for which clients."""

    text: str
    said: str
    mended: str
    opens: str


def opens(config: Config) -> str:
    """Every port string of a configuration, and the clients it admits, in one line."""
    return "; ".join(
        " ".join(
            [
                f"{mapping.listen or ','.join(map(str, entry.listen)) or '*'}:{mapping.host}/{mapping.protocol}",
                f"-> {entry.domain}:{mapping.guest}",
                *([f"from {','.join(map(str, entry.sources))}"] if entry.sources else []),
                *([f"on {entry.interface}"] if entry.interface else []),
                *([f"IPv{int(*families)}"] if len(families := families_of_entry(entry)) == 1 else []),
            ]
        )
        for entry in config.forwards
        for mapping in entry.mappings
    )


def ports(bad: str, said: str, good: str, opened: str) -> Case:
    """A case of one element of `ports`."""
    return Case(f"{WEB}ports = [{bad}]\n", f"3: forward 1: ports[1]: {said}", f"{WEB}ports = [{good}]\n", opened)


def toml(bad: str, line: int, said: str, good: str, opened: str = "") -> Case:
    """A case of a text that is not TOML."""
    return Case(bad, f"{line}: is not valid TOML: {said}", good, opened)


def key(bad: str, said: str, good: str, opened: str) -> Case:
    """A case of one line of an entry that has port 80."""
    head = '[[forward]]\nports = ["80"]\n'
    web = "" if bad.startswith("domain") else 'domain = "web1"\n'
    return Case(f"{head}{web}{bad}\n", f"{3 + bool(web)}: forward 1: {said}", f"{head}{web}{good}\n", opened)


def follow(case: Case) -> None:
    """Demand that its text is refused with what is said, and that the text after that opens what it said."""
    assert problems_of(case.text) == [f"portfwd.toml:{case.said}"]
    assert problems_of(case.mended) == []
    assert opens(read(case.mended)) == case.opens
