"""Where a node of this host has its sockets, unless something else is said."""

from __future__ import annotations

import os
import pathlib

from .errors import NodeError


def state_folder() -> pathlib.Path:
    """The node's state folder: `RAMJET_STATE`, `STATE_DIRECTORY`, `XDG_STATE_HOME`/ramjet, ~/.local/state/ramjet."""
    for variable, below in (("RAMJET_STATE", ""), ("STATE_DIRECTORY", ""), ("XDG_STATE_HOME", "ramjet")):
        # systemd lists several folders with colons; the first is the node's.
        value = os.environ.get(variable, "")
        if variable == "STATE_DIRECTORY":
            value = value.split(":")[0]
        if value:
            return pathlib.Path(value) / below
    return pathlib.Path.home() / ".local" / "state" / "ramjet"


def local_socket(named: str | os.PathLike[str] | None, *, requester: bool) -> pathlib.Path:
    """The local socket of a node: what was named, `RAMJET_SOCKET`, else one in the state folder.

    Raises:
        NodeError: there is none.
    """
    path = named or os.environ.get("RAMJET_SOCKET")
    if path:
        return pathlib.Path(path)
    folder = state_folder()
    names = ("requester.sock", "ramjet.sock") if requester else ("ramjet.sock",)
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise NodeError(
        f"no node serves a socket in {folder}; start `ramjet up` or `ramjet node`, or name its socket with RAMJET_SOCKET "
        "or socket_path="
    )
