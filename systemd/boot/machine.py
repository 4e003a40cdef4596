"""A Debian that boots in a container: made once, used under an overlay, entered by namespaces.

Invariants: everything it starts or mounts is ended and unmounted when it is left, also after a failure; the Debian
below the overlay is never written to; every wait has a bound.
"""

import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

SUITE = "bookworm"
PACKAGES = "systemd,systemd-sysv,dbus,procps,iproute2"
# The wait for a boot, and for anything in it, in seconds.
BOOT_S = 90
PATIENCE_S = 60
TOOLS = ("debootstrap", "systemd-nspawn", "nsenter", "mount", "umount")

PTRACE_INTERRUPT, PTRACE_SEIZE, WAIT_ALL = 0x4207, 0x4206, 0x40000000


class Missing(Exception):
    """Something that this machine lacks."""


class Machine:
    """A booted container. Use it as a context."""

    class Failed(Exception):
        """A command in it failed."""

    def __init__(self, packages, upgrade):
        self.folders = {"/packages": packages, "/upgrade": upgrade}
        self.nspawn = self.scratch = self.leader = self.log = None
        self.tracers = []

    def __enter__(self):
        check_requirements()
        base = debian(cache())
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="ramjet-boot-"))
        try:
            self.mount(base)
            self.boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for tracer in self.tracers:
            os.kill(tracer, signal.SIGKILL)
            os.waitpid(tracer, 0)
        if self.nspawn and self.nspawn.poll() is None:
            # Its own power-off takes longer, and there is nothing in it to be kept. The first process of the container
            # takes all others with it.
            if self.leader:
                os.kill(self.leader, signal.SIGKILL)
            else:
                self.nspawn.kill()
            self.nspawn.wait(PATIENCE_S)
        if self.log:
            self.log.close()
        root = self.scratch / "memory" / "root"
        for folder in (root, self.scratch / "memory"):
            unmount(folder)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def mount(self, base):
        memory = self.scratch / "memory"
        memory.mkdir()
        call(["mount", "-t", "tmpfs", "-o", "size=1G,mode=755", "ramjet-boot", memory])
        for name in ("upper", "work", "root"):
            (memory / name).mkdir()
        options = f"lowerdir={base},upperdir={memory}/upper,workdir={memory}/work"
        call(["mount", "-t", "overlay", "-o", options, "ramjet-boot", memory / "root"])

    def boot(self):
        command = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network",
                   "--link-journal=no", "--console=pipe", "--directory", self.scratch / "memory" / "root"]
        command += [f"--bind-ro={folder.resolve()}:{place}" for place, folder in self.folders.items() if folder]
        self.log = open(self.scratch / "console", "wb")
        self.nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                       env={"PATH": os.environ["PATH"], "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"})
        until = time.monotonic() + BOOT_S
        while time.monotonic() < until:
            if self.nspawn.poll() is not None:
                raise Missing(f"systemd-nspawn cannot boot here: {self.console()}")
            self.leader = self.leader or child_of(self.nspawn.pid)
            if self.leader:
                state = self.run(["systemctl", "is-system-running"], check=False).stdout.strip()
                if state in ("running", "degraded"):
                    return
            time.sleep(0.1)
        raise Missing(f"the Debian did not boot within {BOOT_S} s: {self.console()}")

    def console(self):
        return (self.scratch / "console").read_text(errors="replace").strip()[-500:]

    def inside(self, command):
        """A command line of the host that runs this one inside."""
        return ["nsenter", "--target", str(self.leader), "--mount", "--uts", "--ipc", "--net", "--pid", "env", "-i",
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "DEBIAN_FRONTEND=noninteractive",
                *map(str, command)]

    def run(self, command, check=True, text=None):
        done = subprocess.run(self.inside(command), capture_output=True, text=True, input=text, timeout=PATIENCE_S * 2)
        if check and done.returncode != 0:
            said = (done.stdout + done.stderr).strip()[-800:]
            raise Machine.Failed(f"{' '.join(map(str, command))} exits with {done.returncode}: {said}")
        return done

    def shell(self, script):
        """What a script in it prints."""
        return self.run(["sh", "-ec", script]).stdout

    def start(self, command, **pipes):
        return subprocess.Popen(self.inside(command), **pipes)

    def path(self, name):
        """Where a file of it is for the host."""
        return pathlib.Path(f"/proc/{self.leader}/root{name}")

    def journal(self, lines):
        return self.run(["journalctl", "--no-pager", "-n", lines], check=False).stdout

    def show(self, unit, name):
        return self.run(["systemctl", "show", "--value", "-p", name, unit]).stdout.strip()

    def wait(self, what, ask, seconds=PATIENCE_S):
        """Asks until the answer is true; how long that took."""
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            answer = ask()
            if answer:
                return time.monotonic() - began
            time.sleep(0.02)
        raise AssertionError(f"{what}: not within {seconds} s")

    def host_pid(self, pid):
        """The host's number of a process in it."""
        space = os.readlink(f"/proc/{self.leader}/ns/pid")
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(folder / "ns/pid") != space:
                    continue
                numbers = next(line for line in (folder / "status").read_text().splitlines() if "NSpid" in line)
            except (OSError, StopIteration):
                continue
            if numbers.split()[-1] == str(pid):
                return int(folder.name)
        raise AssertionError(f"process {pid} is not to be found")

    def stop_thread(self, pid, name):
        """Stops one thread of a process in it, as a lock that never comes free would."""
        process = self.host_pid(pid)
        for task in pathlib.Path(f"/proc/{process}/task").iterdir():
            if (task / "comm").read_text().strip() == name:
                self.tracers.append(freeze(int(task.name)))
                return
        raise AssertionError(f"process {pid} has no thread {name}")


def freeze(thread):
    """Stops a thread by ptrace until its process ends. A process of its own does it: the end of a traced thread must
    be heard by whoever traces it, or its process stays as a zombie."""
    ready, told = os.pipe()
    tracer = os.fork()
    if tracer == 0:
        code = 1
        try:
            trace(thread)
            os.write(told, b".")
            os.waitpid(thread, WAIT_ALL)
            code = 0
        finally:
            os._exit(code)
    os.close(told)
    with open(ready, "rb") as pipe:
        if pipe.read(1) != b".":
            raise AssertionError(f"thread {thread} cannot be stopped by ptrace")
    return tracer


def trace(thread):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        if libc.ptrace(request, thread, None, None) != 0:
            raise OSError(ctypes.get_errno(), f"ptrace of thread {thread}")
    os.waitpid(thread, WAIT_ALL)


def check_requirements():
    if os.geteuid() != 0:
        raise Missing("it must run as root")
    for tool in TOOLS:
        if not shutil.which(tool):
            raise Missing(f"{tool} is not installed (apt install debootstrap systemd-container)")


def cache():
    target = os.environ.get("CARGO_TARGET_DIR") or pathlib.Path(__file__).resolve().parents[2] / "target"
    return pathlib.Path(os.environ.get("RAMJET_BOOT_CACHE") or pathlib.Path(target) / "boot-test").resolve()


def debian(folder):
    """The Debian below all overlays; made if it is not there."""
    base, partial = folder / f"debian-{SUITE}", folder / f"debian-{SUITE}.partial"
    if base.is_dir():
        return base
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    print(f"boot-test: making {base}, once", flush=True)
    done = subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, partial],
                          capture_output=True, text=True, timeout=1_800)
    if done.returncode != 0:
        raise Missing(f"debootstrap failed, are Debian's packages reached? {(done.stdout + done.stderr)[-500:]}")
    partial.rename(base)
    return base


def child_of(pid):
    """The first process in the container: the one child of nspawn."""
    try:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def unmount(folder):
    """What still uses it has been killed and is about to be gone."""
    for _ in range(50):
        if not os.path.ismount(folder) or subprocess.run(["umount", folder], capture_output=True).returncode == 0:
            return
        time.sleep(0.1)


def call(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    if done.returncode != 0:
        raise Missing(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


def kill(process):
    """Ends a process that was started here."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_S)
