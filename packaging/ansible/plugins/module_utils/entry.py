# Copyright: kvm-portfwd maintainers
# Apache License 2.0 (see https://www.apache.org/licenses/LICENSE-2.0)
"""What the modules for entries share: one entry is one drop-in file, which is checked before it is written."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
# In `check`, the configuration is refused; see EXIT STATUS of kvm-portfwd(8).
REFUSED = 78

COMMON_OPTIONS = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "reload": {"type": "bool", "default": True},
    "config": {"type": "path", "default": "/etc/portfwd.toml"},
    "program": {"type": "path", "default": "kvm-portfwd"},
}


def toml_value(value):
    """Write a value as TOML: a basic string has the escapes of JSON, and does not take DEL as it is either."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_entry(kind, values):
    """Write one entry; keys without a value are left out."""
    lines = [f"{key} = {toml_value(value)}" for key, value in values.items() if value is not None]
    return "\n".join(["# Ansible keeps this file.", f"[[{kind}]]", *lines, ""])


def read(path):
    """Read a file; one that is not there is empty."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


class Entry:
    """The drop-in of one entry, and how it gets there."""

    def __init__(self, module, kind, keys):
        self.module = module
        self.config = module.params["config"]
        self.directory = re.sub(r"\.toml$", "", self.config) + ".d"
        name = module.params["name"]
        if not NAME.fullmatch(name):
            allowed = "use letters, digits, '.', '_' and '-'"
            module.fail_json(msg=f"name {name!r}: {allowed}; it becomes part of a file name")
        self.path = os.path.join(self.directory, f"ansible-{kind}-{name}.toml")
        present = module.params["state"] == "present"
        self.text = toml_entry(kind, {key: module.params[key] for key in keys}) if present else ""

    def ensure(self):
        """Bring the file to what the task says, and the daemon to the file; end the module."""
        before = read(self.path)
        result = {"changed": before != self.text, "path": self.path, "reloaded": False}
        if self.module._diff:  # noqa: SLF001  so it is in the documentation of Ansible's modules
            header = {"before_header": self.path, "after_header": self.path}
            result["diff"] = {"before": before, "after": self.text, **header}
        if result["changed"]:
            self.refuse_errors()
            if not self.module.check_mode:
                self.put(self.text)
                result["reloaded"] = self.module.params["reload"] and self.reload(before)
        self.module.exit_json(**result)

    def refuse_errors(self):
        """Fail with what `check` says of the configuration as it would be; a copy is checked, nothing is written."""
        with tempfile.TemporaryDirectory(dir=self.module.tmpdir) as place:
            main = os.path.join(place, os.path.basename(self.config))
            drop_ins = os.path.join(place, os.path.basename(self.directory))
            self.copy_to(main, drop_ins)
            code, out, err = self.run("check", "--config", main)
            if code:
                said = (out + err).replace(drop_ins, self.directory).replace(main, self.config)
                self.module.fail_json(msg=f"the configuration would not be accepted:\n{said}", path=self.path)

    def copy_to(self, main, drop_ins):
        if os.path.exists(self.config):
            shutil.copy(self.config, main)
        os.mkdir(drop_ins, 0o755)
        for name in os.listdir(self.directory) if os.path.isdir(self.directory) else []:
            if name.endswith(".toml") and os.path.isfile(os.path.join(self.directory, name)):
                shutil.copy(os.path.join(self.directory, name), drop_ins)
        draft = os.path.join(drop_ins, os.path.basename(self.path))
        if self.text:
            write(draft, self.text)
        elif os.path.exists(draft):
            os.unlink(draft)

    def put(self, text):
        """Replace the file at once, root's own and not for others to write, or remove it."""
        if not text:
            os.unlink(self.path)
            return
        os.makedirs(self.directory, 0o755, exist_ok=True)
        draft = os.path.join(self.module.tmpdir, os.path.basename(self.path))
        write(draft, text)
        self.module.atomic_move(draft, self.path)

    def reload(self, before):
        """Have the daemon read it; without a daemon, the next start does. What it refuses is taken back."""
        if self.run("status", "--json")[0] != 0:
            return False
        code, out, err = self.run("reload")
        if code == REFUSED:
            self.put(before)
        if code:
            self.module.fail_json(msg=f"kvm-portfwd reload failed:\n{out}{err}", path=self.path)
        return True

    def run(self, *words):
        return self.module.run_command([self.module.params["program"], *words])


def write(path, text):
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o644)
        file.write(text)
