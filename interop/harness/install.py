"""The Pilot packages, each version in a folder of its own, downloaded once."""

import pathlib
import shutil
import subprocess
import sys

WORK = pathlib.Path(__file__).resolve().parent.parent / ".work"
VERSIONS = ("1.18.0", "1.9.1")
# The last version whose daemons trade tasks and keep polo.
TASK_VERSION = "1.9.1"
INSTALL_LIMIT_S = 300
# What pip says when it is the network that refused, as opposed to the package or the interpreter. An index that
# offers no version at all is one that was not reached, or that has nothing for this platform.
NETWORK_REFUSALS = (
    "NewConnectionError", "ConnectTimeout", "ReadTimeout", "Connection refused", "ProxyError",
    "Temporary failure in name resolution", "Name or service not known", "Network is unreachable",
    "(from versions: none)", "Connection reset", "403 Client Error", "Tunnel connection failed",
)


def package(version):
    """The folder that holds the Python package of a version."""
    return WORK / f"pilot-{version}"


def binaries(version):
    """The folder that holds the programs of a version."""
    return package(version) / "pilotprotocol" / "bin"


def install(version):
    """Installs one version into its own folder, once. Returns why the network refused, or nothing."""
    if (binaries(version) / "pilot-daemon").exists():
        return None
    target = package(version)
    venv = WORK / "venv"
    if not (venv / "bin" / "pip").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=INSTALL_LIMIT_S)
    # The wheels carry programs, not modules for this interpreter: any interpreter tag will do.
    command = [str(venv / "bin" / "pip"), "install", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11", "--abi", "cp311",
               "--target", str(target), f"pilotprotocol=={version}"]
    print(f"interop: installing pilotprotocol {version}", file=sys.stderr)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S)
    except subprocess.TimeoutExpired:
        shutil.rmtree(target, ignore_errors=True)
        return f"no answer within {INSTALL_LIMIT_S} s"
    if done.returncode == 0:
        for program in binaries(version).iterdir():
            program.chmod(0o755)
        return None
    shutil.rmtree(target, ignore_errors=True)
    for line in done.stderr.splitlines():
        if any(refusal in line for refusal in NETWORK_REFUSALS):
            return line.strip()
    sys.exit(f"interop: pip failed for pilotprotocol {version}, and not for the network:\n{done.stderr}")
