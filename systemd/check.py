#!/usr/bin/env python3
"""Checks the units against each other and against the binary they start.

What it holds: every hardening line stands under a comment with its reason; every flag of an ExecStart is one
that the binary's own help lists, and the values of --state and --socket lie in folders the unit makes; user and
group are in sysusers.d; io_uring is in the system call filter of what may use it and not taken out again; locked
memory is set; a service does not start again after a wrong setting; the settings that are shipped are read by the
binary; and where `systemd-analyze` is present, systemd itself reads the units, and finds none of them more
exposed than the list below says: a ratchet, lowered when a unit improves and never raised.

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
SELF_EVIDENT = {"Type", "User", "Group", "ExecStart", "ExecReload", "NotifyAccess", "Slice"}
# Exposure by `systemd-analyze security --offline=true`, at most; 0 is best and 10 worst.
EXPOSURE_MAX = {"ramjet-node.service": 1.2, "ramjet-registry.service": 1.2, "ramjet-agent@.service": 0.5}
# Those that run the binary; an agent runs what its operator names.
OURS = {"ramjet-node.service", "ramjet-registry.service"}
WRONG_SETTING = "2"
# Where agents look for the node.
AGENT_SOCKET = "/run/ramjet-agents/agents.sock"


class Unit:
    """One unit file: its settings in order, each with the comment it stands under."""

    def __init__(self, path):
        self.path, self.settings, self.exposure = path, [], None
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
    if unit.path.name not in OURS:
        return
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
    if unit.path.name not in OURS:
        return
    words = unit.one("ExecStart").split()
    flags = dict(zip(words, words[1:]))
    for flag, setting, root in (("--state", "StateDirectory", "/var/lib"), ("--socket", "RuntimeDirectory", "/run"),
                                ("--agent-socket", "RuntimeDirectory", "/run")):
        if flag not in flags:
            continue
        made = [f"{root}/{name}" for name in (unit.one(setting) or "").split()]
        if not any(flags[flag] == folder or flags[flag].startswith(folder + "/") for folder in made):
            yield f"{flag} {flags[flag]} is in none of {made}, which {setting} makes"
    if flags.get("--config") != unit.one("ConditionPathExists"):
        yield f"--config {flags.get('--config')} is not the file the unit's condition names"
    shipped = HERE / "conf" / pathlib.Path(flags.get("--config", "")).name
    if not shipped.is_file():
        yield f"no settings are shipped as {shipped.relative_to(HERE)}"


def check_identity(unit):
    lines = [line for path in sorted((HERE / "sysusers.d").glob("*.conf")) for line in path.read_text().splitlines()]
    users = {line.split()[1] for line in lines if line.startswith("u ")}
    for key in ("User", "Group"):
        if unit.one(key) not in users:
            yield f"{key}={unit.one(key)} is in no file of sysusers.d"
    if not re.fullmatch(r"\d+[MG]|infinity", unit.one("LimitMEMLOCK") or ""):
        yield "LimitMEMLOCK is not set to a size"


def check_restarts(unit):
    for key in ("StartLimitIntervalSec", "StartLimitBurst", "RestartSec"):
        if unit.one(key) is None:
            yield f"{key} is not set"
    if unit.path.name in OURS and WRONG_SETTING not in (unit.one("RestartPreventExitStatus") or "").split():
        yield f"a wrong setting (exit code {WRONG_SETTING}) would be tried again"
    if unit.path.name in OURS and unit.one("WatchdogSec") is None:
        yield "WatchdogSec is not set"


def check_settings(unit, ramjet):
    """The settings that are shipped name nothing that the binary does not know."""
    shipped = HERE / "conf" / pathlib.Path(unit.one("ConditionPathExists")).name
    if unit.path.name not in OURS or not shipped.is_file():
        return
    done = subprocess.run([ramjet, "--config", str(shipped), "doctor", "--json"], capture_output=True, text=True,
                          timeout=60)
    if done.returncode == 2:
        yield f"{shipped.relative_to(HERE)}: {done.stderr.strip()}"


def check_flags(unit, ramjet):
    if unit.path.name not in OURS:
        return
    words = unit.one("ExecStart").split()
    if words[0] != "/usr/bin/ramjet":
        yield f"ExecStart runs {words[0]}, not /usr/bin/ramjet"
    done = subprocess.run([ramjet, words[1], "--help"], capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        yield f"`ramjet {words[1]} --help` exits with {done.returncode}: {done.stderr.strip()}"
        return
    offered = set(re.findall(r"--[a-z][a-z0-9-]*", done.stdout))
    if "--agent-socket" in offered and f"--agent-socket {AGENT_SOCKET}" not in unit.one("ExecStart"):
        yield f"ramjet-agent@.service looks for the node at {AGENT_SOCKET}; --agent-socket does not name it"
    for word in words[2:]:
        if word.startswith("--") and word.split("=")[0] not in offered:
            yield f"`ramjet {words[1]} --help` does not list {word}"


def check_by_systemd(unit, ramjet):
    """Lets systemd read a copy that starts a program which exists here and waits for no settings."""
    text = unit.path.read_text().replace("/usr/bin/ramjet", str(ramjet or shutil.which("true")))
    with tempfile.TemporaryDirectory() as folder:
        # A template is read as one of its instances.
        copy = pathlib.Path(folder) / unit.path.name.replace("@.", "@test.")
        copy.write_text(re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE))
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True,
                              timeout=60)
    for line in (done.stdout + done.stderr).splitlines():
        # systemd also tells about other units of this host; only ours is on trial.
        if copy.name in line:
            yield f"systemd-analyze: {line.strip()}"


def check_exposure(unit):
    limit = EXPOSURE_MAX.get(unit.path.name)
    if limit is None:
        yield "no limit of its exposure is listed in check.py"
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / unit.path.name.replace("@.", "@test.")
        copy.write_text(unit.path.read_text())
        done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", str(copy)],
                              capture_output=True, text=True, timeout=60)
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    if not found:
        yield f"systemd-analyze tells no exposure: {done.stderr.strip()}"
        return
    unit.exposure = float(found[1])
    if unit.exposure > limit:
        yield f"exposure {unit.exposure}, at most {limit}; `systemd-analyze security --offline=true` names each line"


def main():
    parser = argparse.ArgumentParser(description="Checks the units against each other and against the binary.")
    parser.add_argument("--ramjet", help="the binary whose help the ExecStart flags are checked against")
    arguments = parser.parse_args()
    ramjet = pathlib.Path(arguments.ramjet).resolve() if arguments.ramjet else None
    if ramjet and not ramjet.is_file():
        print(f"systemd/check.py: no binary at {ramjet}; build it with `cargo build --release`", file=sys.stderr)
        return 2
    by_systemd = shutil.which("systemd-analyze") is not None
    checks = [check_reasons, check_filter, check_folders, check_identity, check_restarts]
    checks += [lambda unit: check_flags(unit, ramjet), lambda unit: check_settings(unit, ramjet)] if ramjet else []
    checks += [lambda unit: check_by_systemd(unit, ramjet), check_exposure] if by_systemd else []
    faults = 0
    for path in sorted(HERE.glob("*.service")):
        unit = Unit(path)
        found = [fault for check in checks for fault in check(unit)]
        faults += len(found)
        for fault in found:
            print(f"{path.name}: {fault}")
        exposed = "" if unit.exposure is None else f", exposure {unit.exposure}"
        print(f"{path.name}: {len(unit.settings)} settings{exposed}, {len(found)} faults")
    missing = [] if ramjet else ["the flags (no --ramjet given)"]
    missing += [] if by_systemd else ["systemd's own reading and the exposure (no systemd-analyze here)"]
    print("systemd: " + ("all checks hold" if not faults else f"{faults} faults")
          + ("" if not missing else "; not checked: " + ", ".join(missing)))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
