"""The module for NixOS evaluates, and what it makes of its settings is checked before it is installed.

nixpkgs itself is not among the packages that a test can get, so small stand-ins take its place: a build is shown as its
script, and nothing is built.
"""

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

from fwdaemon import __version__
from tests.unit import programs

NIX: Final = Path(__file__).parents[2] / "packaging/nix"
STAND_INS: Final = """
let
  lib = {
    mkEnableOption = text: { default = false; };
    mkOption = option: option;
    mkIf = condition: content: if condition then content else { };
    types.package = "package";
    head = builtins.head;
    licenses.asl20 = "Apache-2.0";
    platforms.linux = [ "x86_64-linux" ];
  };
  python3Packages = builtins.listToAttrs (map (name: { inherit name; value = name; }) [ LIBRARIES ]) // {
    hatchling = "hatchling";
    buildPythonApplication = package: package;
  };
  pkgs = {
    nftables = "nftables";
    iptables = "iptables";
    ipset = "ipset";
    formats.toml = { }: { type = "toml"; generate = name: value: "/nix/store/${builtins.toJSON value}"; };
    runCommand = name: settings: script: { inherit name script; };
    callPackage = file: { }: import file {
      inherit lib python3Packages;
      coreutils = "/nix/coreutils";
      installShellFiles = "installShellFiles";
    };
  };
  package = module.options.services.kvm-portfwd.package.default;
  settings.forward = [ { domain = "web1"; ports = [ "8080:80" ]; } ];
  module = import ./module.nix {
    inherit lib pkgs;
    config.services.kvm-portfwd = { enable = true; inherit package settings; };
  };
in { inherit package; inherit (module) config; }
"""


def libraries() -> set[str]:
    """Give the names that nixpkgs has for what we depend on."""
    project = tomllib.loads((NIX.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = (*project["dependencies"], *project["optional-dependencies"]["metrics"])
    names = {line.partition(">=")[0] for line in wanted}
    return {"libvirt" if name == "libvirt-python" else name for name in names}


def evaluated() -> dict[str, Any]:
    words = " ".join(f'"{name}"' for name in sorted(libraries()))
    text = STAND_INS.replace("LIBRARIES", words).replace("./module.nix", str(NIX / "module.nix"))
    argv = [programs.find("nix-instantiate"), "--eval", "--strict", "--json", "--expr", text]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603  words of ours
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_package_has_our_version_and_what_we_depend_on() -> None:
    package = evaluated()["package"]
    assert package["version"] == __version__
    assert set(package["dependencies"]) == libraries()


def test_the_files_that_the_package_installs_exist() -> None:
    script = evaluated()["package"]["postInstall"]
    names = [word for word in script.split() if word.partition("/")[0] in {"systemd", "man", "completion"}]
    assert len(names) >= 6
    for name in names:
        assert list(NIX.parents[1].glob(name.partition("{")[0] + "*")), name
    unit = (NIX.parents[1] / "systemd/kvm-portfwd.service").read_text(encoding="utf-8")
    assert all(f"={path}" in unit for path in ("/usr/bin/kvm-portfwd", "/bin/kill"))


def test_the_module_installs_only_what_check_accepted() -> None:
    made = evaluated()["config"]
    file = made["environment"]["etc"]["portfwd.toml"]
    asked = {"forward": [{"domain": "web1", "ports": ["8080:80"]}]}
    assert json.dumps(asked, separators=(",", ":")) in file["source"]["script"]
    assert "kvm-portfwd check portfwd.toml" in file["source"]["script"]
    assert file["mode"] == "0644"
    service = made["systemd"]["services"]["kvm-portfwd"]
    assert service["wantedBy"] == ["multi-user.target"]
    assert service["reloadTriggers"] == [file["source"]]
