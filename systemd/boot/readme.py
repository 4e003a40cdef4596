"""The path of a new user, out of README.md: what it tells people to type is what is typed here."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADING = "## On a Debian host, as services"
# The command on the machine that builds; the packages that it made are given to this test.
BUILD = "systemd/package"
COMMANDS_MAX = 5
NAMES = ("install", "start", "task")


def commands():
    """Name and line of each command that a host needs: packages, services, a first task.

    Raises ValueError if README.md has no such block, needs more commands, or systemd/README.md says others.
    """
    lines = block((ROOT / "README.md").read_text())
    if len(lines) > COMMANDS_MAX:
        raise ValueError(f"README.md needs {len(lines)} commands until a first task is answered, at most {COMMANDS_MAX}")
    if not lines or lines[0] != BUILD or len(lines) != len(NAMES) + 1:
        raise ValueError(f"README.md, {HEADING!r}: {BUILD} and then {', '.join(NAMES)} are expected, and not {lines}")
    page = (ROOT / "systemd" / "README.md").read_text()
    for line in lines[1:]:
        if f"    {line}\n" not in page:
            raise ValueError(f"systemd/README.md lacks a command of README.md: {line}")
    return dict(zip(NAMES, lines[1:]))


def block(text):
    """The commands of the block of code below the heading, without their comments."""
    _, _, section = text.partition(f"\n{HEADING}\n")
    code = section.partition("```sh\n")[2].partition("\n```")[0]
    return [line.partition(" #")[0].strip() for line in code.splitlines() if line.strip()]
