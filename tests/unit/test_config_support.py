"""What the tests of the configuration have in common: texts in, problems out."""

from pathlib import Path

from fwdaemon.config import parse
from fwdaemon.config.model import Config
from fwdaemon.errors import ConfigError

MAIN = Path("/etc/portfwd.toml")


def read(text: str) -> Config:
    return parse({MAIN: text})


def problems_of(*texts: str | bytes) -> list[str]:
    """Every problem of a main file and drop-ins `a`, `b`, … as `FILE:LINE: text`, directories left out."""
    names = [MAIN, *(Path(f"/etc/portfwd.d/{letter}.toml") for letter in "abcdefgh"[: len(texts) - 1])]
    try:
        parse(dict(zip(names, texts, strict=True)))
    except ConfigError as error:
        return [f"{problem.file.name}:{problem.line}: {problem.text}" for problem in error.problems]
    return []


def forward(lines: str = "", ports: str = '["80"]') -> str:
    return f'[[forward]]\ndomain = "web1"\nports = {ports}\n{lines}\n'


def nat(public: str = "198.51.100.8", lines: str = "") -> str:
    return f'[[nat]]\ndomain = "mail"\npublic = "{public}"\n{lines}\n'


def route(addresses: str = '["203.0.113.64/29"]', lines: str = "") -> str:
    return f'[[route]]\nnetwork = "public"\naddresses = {addresses}\n{lines}\n'
