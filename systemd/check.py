#!/usr/bin/env python3
"""Checks the units against each other and against the binary they start.

What it holds: every hardening line stands under a comment with its reason; every flag of an ExecStart is one
that the binary's own help lists, and the values of --state and --socket lie in folders the unit makes; user and
group are in sysusers.d; io_uring is in the system call filter and not taken out again; locked memory is raised;
and systemd itself reads the units, where `systemd-analyze` is present.

Usage: systemd/check.py [--ramjet PATH]. Exit codes: 0 all hold, 1 something does not, 2 usage.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
RING_CALLS = {"io_uring_setup", "io_uring_enter", "io_uring_register"}
# Lines that say for themselves what they are for.
SELF_EVIDENT = {"Type", "User", "Group", "ExecStart"}


class Unit:
    """One unit file: its settings in order, each with the comment it stands under."""

    def __init__(self, path):
        self.path, self.settings = path, []
        section, comment = None, None
        for line in path.read_text().splitlines():
            if line.startswith("#"):
                comment = line[1:].strip()
            elif line.startswith("["):
                section, comment = line.strip("[]"), None
            elif not line.strip():
                comment = None
            else:
                key, _, value = line.partition("=")
                self.settings.append((section, key, value, comment))

    def all(self, name):
        return [value for _, key, value, _ in self.settings if key == name]

    def one(self, name):
        values = self.all(name)
        return values[0] if len(values) == 1 else None


def check_reasons(unit):
    for section, key, _, comment in unit.settings:
        if section == "Service" and key not in SELF_EVIDENT and not comment:
            yield f"{key} has no reason above it"


def check_filter(unit):
    allowed, denied = set(), set()
    for value in unit.all("SystemCallFilter"):
        names = denied if value.startswith("~") else allowed
        names.update(value.lstrip("~").split())
    for call in sorted(RING_CALLS - allowed):
        yield f"{call} is not in the system call filter"
    for call in sorted(RING_CALLS & denied):
        yield f"{call} is taken out of the system call filter"
    for group in sorted({"@aio", "@resources", "@network-io"} & denied):
        yield f"{group} is taken out of the system call filter; a worker needs it"


def check_folders(unit):
    words = unit.one("ExecStart").split()
    flags = dict(zip(words, words[1:]))
    for flag, setting, root in (("--state", "StateDirectory", "/var/lib"), ("--socket", "RuntimeDirectory", "/run")):
        if flag not in flags:
            continue
        made = f"{root}/{unit.one(setting)}"
        if flags[flag] != made and not flags[flag].startswith(made + "/"):
            yield f"{flag} {flags[flag]} is outside {made}, which {setting} makes"
    if flags.get("--config") != unit.one("ConditionPathExists"):
        yield f"--config {flags.get('--config')} is not the file the unit's condition names"


def check_identity(unit):
    users = {line.split()[1] for line in (HERE / "sysusers.d" / "ramjet.conf").read_text().splitlines()
             if line.startswith("u ")}
    for key in ("User", "Group"):
        if unit.one(key) not in users:
            yield f"{key}={unit.one(key)} is not in sysusers.d/ramjet.conf"
    if not re.fullmatch(r"\d+[MG]", unit.one("LimitMEMLOCK") or ""):
        yield "LimitMEMLOCK is not set to a size"


def check_flags(unit, ramjet):
    words = unit.one("ExecStart").split()
    if words[0] != "/usr/bin/ramjet":
        yield f"ExecStart runs {words[0]}, not /usr/bin/ramjet"
    done = subprocess.run([ramjet, words[1], "--help"], capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        yield f"`ramjet {words[1]} --help` exits with {done.returncode}: {done.stderr.strip()}"
        return
    offered = set(re.findall(r"--[a-z][a-z0-9-]*", done.stdout))
    for word in words[2:]:
        if word.startswith("--") and word.split("=")[0] not in offered:
            yield f"`ramjet {words[1]} --help` does not list {word}"


def check_by_systemd(unit, ramjet):
    """Lets systemd read a copy that starts a program which exists here and waits for no settings."""
    text = unit.path.read_text().replace("/usr/bin/ramjet", str(ramjet or shutil.which("true")))
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / unit.path.name
        copy.write_text(re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE))
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True,
                              timeout=60)
    for line in (done.stdout + done.stderr).splitlines():
        # systemd also tells about other units of this host; only ours is on trial.
        if unit.path.name in line:
            yield f"systemd-analyze: {line.strip()}"


def main():
    parser = argparse.ArgumentParser(description="Checks the units against each other and against the binary.")
    parser.add_argument("--ramjet", help="the binary whose help the ExecStart flags are checked against")
    arguments = parser.parse_args()
    ramjet = pathlib.Path(arguments.ramjet).resolve() if arguments.ramjet else None
    if ramjet and not ramjet.is_file():
        print(f"systemd/check.py: no binary at {ramjet}; build it with `cargo build --release`", file=sys.stderr)
        return 2
    by_systemd = shutil.which("systemd-analyze") is not None
    checks = [check_reasons, check_filter, check_folders, check_identity]
    checks += [lambda unit: check_flags(unit, ramjet)] if ramjet else []
    checks += [lambda unit: check_by_systemd(unit, ramjet)] if by_systemd else []
    faults = 0
    for path in sorted(HERE.glob("*.service")):
        unit = Unit(path)
        found = [fault for check in checks for fault in check(unit)]
        faults += len(found)
        for fault in found:
            print(f"{path.name}: {fault}")
        print(f"{path.name}: {len(unit.settings)} settings, {len(found)} faults")
    missing = [] if ramjet else ["the flags (no --ramjet given)"]
    missing += [] if by_systemd else ["systemd's own reading (no systemd-analyze here)"]
    print("systemd: " + ("all checks hold" if not faults else f"{faults} faults")
          + ("" if not missing else "; not checked: " + ", ".join(missing)))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
