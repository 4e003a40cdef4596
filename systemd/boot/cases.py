"""What operators do, one case each: it does it, asserts what must hold, and gives what it measured."""

import json
import time

import readme
from load import REGISTRY, Load

NODE, MARKET = "ramjet-node", "ramjet-registry"
STARTED, STOPPED = "active", "inactive"
START_S_MAX = 1.0
SENTENCE = "Alle Menschen sind frei und gleich an Rechten geboren."
# Message ids of runtime/src/events.rs.
READY = "31c7824ea2f44e8586fb543282327f21"
DRAINING = "3fd7c71793314be6a48650f10ee9b391"
SILENCE = "0cd265a3a71d45f68a0c038053c35b08"
RELOADED = "454f441dd9ab4e8496b4d37ef7ffa696"
RELOAD_REFUSED = "5f923d253a3d47d78c7176010e9a26cd"
SOCKETS_KEPT = "c54b68817b674c508272686fbd7cfb9e"
# What removal and purge may leave: settings until the purge; what was earned, and the users, for ever.
LEFT = ("/var/lib/ramjet-node", "/var/lib/ramjet-registry", "/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow",
        "/etc/credstore")
NOT_OURS = ("/var/lib/dpkg", "/var/lib/apt", "/var/log", "/var/cache/apt", "/var/cache/ldconfig", "/var/cache/man",
            "/var/lib/systemd", "/var/tmp", "/etc/.pwd.lock", "/etc/ld.so.cache", "/var/lib/dbus", "/etc/machine-id")


class Skipped(Exception):
    """Why a case was not run."""


def files(machine):
    """Every file and folder that an installation may touch."""
    listed = machine.shell("find /etc /usr /var /opt -xdev | sort").splitlines()
    return {name for name in listed if not name.startswith(NOT_OURS)}


def state(machine, unit):
    return machine.run(["systemctl", "is-active", unit], check=False).stdout.strip()


def typed(machine, name):
    """Runs a command of the README where its reader would: beside the packages. What it prints."""
    return machine.shell(f"cd /packages; {readme.commands()[name]}")


def started_s(machine, unit):
    """From the start of the unit to READY=1, as systemd saw it, in seconds."""
    began, ready = (int(machine.show(unit, f"{name}TimestampMonotonic")) for name in ("InactiveExit", "ActiveEnter"))
    assert ready > began > 0, f"{unit}: began {began}, ready {ready}"
    return (ready - began) / 1e6


def task(machine, skill="langid", data=SENTENCE, expected='"lang":"deu"'):
    """One task; how long it took from the command to its answer."""
    began = time.monotonic()
    done = machine.run(["ramjet", "submit", "--registry", REGISTRY, "--skill", skill, "--data", data])
    assert expected in done.stdout, f"{done.stdout} {done.stderr}"
    return time.monotonic() - began


def entries(machine, message_id):
    lines = machine.run(["journalctl", "--output=json", f"MESSAGE_ID={message_id}"]).stdout.splitlines()
    return [json.loads(line) for line in lines]


def settings(machine, old, new):
    """Changes the node's settings."""
    path = machine.path("/etc/ramjet/node.toml")
    text = path.read_text()
    assert old in text, f"{old!r} is not in {text}"
    path.write_text(text.replace(old, new))


def ready_again(machine, unit, pid):
    """Waits until another process of the unit is ready."""
    return machine.wait(f"{unit} is back", lambda: machine.show(unit, "MainPID") not in ("0", pid)
                        and state(machine, unit) == STARTED)


def install(machine, _given):
    machine.before = files(machine)
    machine.clean = time.monotonic()
    typed(machine, "install")
    for unit in (NODE, MARKET):
        assert state(machine, unit) == STOPPED, f"the installation started {unit}"
    uid = machine.shell("id -u ramjet ramjet-registry 2>/dev/null || id -u ramjet").split()[0]
    assert int(uid) < 1000, f"ramjet has the uid {uid}, and is no system user"
    pages = machine.shell("dpkg --listfiles ramjet | grep -c 'man1/ramjet.*gz'").strip()
    return {"files": len(files(machine) - machine.before), "manual pages": int(pages)}


def start(machine, _given):
    typed(machine, "start")
    took = {unit: started_s(machine, unit) for unit in (MARKET, NODE)}
    for unit, seconds in took.items():
        assert seconds < START_S_MAX, f"{unit} took {seconds:.2f} s to READY, at most {START_S_MAX}"
    text = machine.show(NODE, "StatusText")
    assert text.startswith("node ") and " serves on " in text, text
    return {f"{unit} ready ms": round(seconds * 1e3) for unit, seconds in took.items()}


def first_task(machine, _given):
    said = typed(machine, "task")
    assert '"lang":"deu"' in said, said
    path = time.monotonic() - machine.clean
    seconds = task(machine)
    # As often as one likes: the settings that are shipped serve everybody on this host.
    task(machine, "sha256", "x", "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881")
    # The asserts between the README's commands are part of it, so it is less by hand.
    return {"commands": len(readme.commands()), "from clean s": round(path, 1), "one more s": round(seconds, 2)}


def hardening(machine, _given):
    socket = "/run/ramjet-node/node.sock"
    status = json.loads(machine.run(["ramjet", "--json", "status", "--socket", socket]).stdout)
    assert status["workers"][1] == "uring", f"the node moves datagrams by {status['workers'][1]}"
    rings = machine.shell(f"ls -l /proc/{machine.show(NODE, 'MainPID')}/fd").count("[io_uring]")
    assert rings > 0, "the node holds no ring"
    pid = machine.show(NODE, "MainPID")
    proc = dict(line.split(":\t", 1) for line in machine.shell(f"cat /proc/{pid}/status").splitlines() if ":\t" in line)
    held = {"CapEff": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"}
    for name, value in held.items():
        assert proc[name].strip() == value, f"{name} is {proc[name].strip()}, not {value}"
    refused = machine.run(["nsenter", "--target", pid, "--mount", "sh", "-c", "touch /usr/x /etc/x"], check=False)
    assert refused.returncode != 0, "the node could write to /usr or /etc"
    folders = "/var/lib/ramjet-node /var/lib/ramjet-registry /var/lib/ramjet-node/identity.json"
    modes = machine.shell(f"stat -c '%U %a' {folders}")
    assert modes.split("\n")[:3] == ["ramjet 700", "ramjet-registry 700", "ramjet 600"], modes
    stored = machine.show(NODE, "NFileDescriptorStore")
    assert stored == str(status["workers"][0]), f"{stored} sockets in the store for {status['workers'][0]} workers"
    return {"rings": rings, "stored sockets": int(stored)}


def journal(machine, _given):
    entry = entries(machine, READY)[-1]
    for field in ("NODE", "ADDRESS", "LISTEN", "PRIORITY", "CODE_FILE"):
        assert entry.get(field), f"the entry lacks {field}: {sorted(entry)}"
    explained = machine.run(["journalctl", "--catalog", "--no-pager", f"MESSAGE_ID={READY}"]).stdout
    assert "The registry has numbered this node" in explained, explained
    assert entry["SYSLOG_IDENTIFIER"] == "ramjet", entry["SYSLOG_IDENTIFIER"]
    return {"fields": len(entry)}


def killed(machine, _given):
    took = {}
    for unit in (NODE, MARKET):
        pid = machine.show(unit, "MainPID")
        machine.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", unit])
        took[f"{unit} back s"] = round(ready_again(machine, unit, pid), 2)
    # The registry remembers the node, and the node finds it again by itself.
    machine.wait("a task is answered", lambda: answered(machine))
    return took


def answered(machine):
    done = machine.run(["ramjet", "submit", "--registry", REGISTRY, "--skill", "echo", "--data", "x",
                        "--accept-timeout", "2s"], check=False)
    return done.returncode == 0 and done.stdout == "x"


def hung(machine, _given):
    limit = int(machine.show(NODE, "WatchdogUSec").removesuffix("s"))
    pid, restarts = machine.show(NODE, "MainPID"), int(machine.show(NODE, "NRestarts"))
    # Fed while all is well: for longer than a node that feeds nobody would live.
    machine.wait("the node is older than the limit", lambda: age_s(machine, NODE) > limit * 1.2)
    assert machine.show(NODE, "MainPID") == pid, "the watchdog bit a node that is well"
    machine.stop_thread(pid, "ramjet-worker-0")
    seconds = ready_again(machine, NODE, pid)
    assert int(machine.show(NODE, "NRestarts")) == restarts + 1, "it was not systemd that started it again"
    assert "Watchdog timeout" in machine.journal(100), "it was not the watchdog"
    why = entries(machine, SILENCE)[-1].get("WHY", "")
    assert "no sign of life" in why or "no answer within" in why, why
    machine.wait("a task is answered", lambda: answered(machine))
    return {"watchdog s": limit, "replaced and ready s": round(seconds, 2)}


def age_s(machine, unit):
    """How long a unit has been active."""
    return time.monotonic() - int(machine.show(unit, "ActiveEnterTimestampMonotonic")) / 1e6


def reload(machine, _given):
    socket = "/run/ramjet-node/node.sock"

    def task_ready():
        done = machine.run(["ramjet", "--json", "status", "--socket", socket])
        return json.loads(done.stdout)["task_ready"]

    machine.wait("the node serves", lambda: answered(machine))
    pid = machine.show(NODE, "MainPID")
    with Load(machine, 8) as load:
        settings(machine, "task-ready = true", "task-ready = false")
        machine.run(["systemctl", "reload", NODE])
        machine.wait("task-ready is taken", lambda: not task_ready())
        load.more(20_000)
        settings(machine, "task-ready = false", "task-raedy = true")
        machine.run(["systemctl", "reload", NODE])
        machine.wait("the fault is told", lambda: entries(machine, RELOAD_REFUSED))
        settings(machine, "task-raedy = true", "task-ready = true")
        machine.run(["systemctl", "reload", NODE])
        machine.wait("task-ready is taken again", task_ready)
        told = load.finish()
    assert machine.show(NODE, "MainPID") == pid, "the reload started another process"
    offers = sum(mark["step"] == "offered" for mark in load.marks)
    assert offers == 1, f"{offers} offers: the engagement did not outlive the reloads"
    return told | {"offers": offers, "reloads": len(entries(machine, RELOADED)) + len(entries(machine, RELOAD_REFUSED))}


def wrong_setting(machine, _given):
    settings(machine, "task-ready = true", "task-raedy = true")
    try:
        machine.run(["systemctl", "restart", NODE], check=False)
        machine.wait("it has failed", lambda: state(machine, NODE) == "failed")
        status, restarts = machine.show(NODE, "ExecMainStatus"), machine.show(NODE, "NRestarts")
        assert (status, restarts) == ("2", "0"), f"exit code {status}, {restarts} restarts"
        assert "did you mean" in machine.journal(30), machine.journal(30)
    finally:
        settings(machine, "task-raedy = true", "task-ready = true")
        machine.shell("systemctl reset-failed && systemctl start ramjet-node")
    return {"exit code": int(status), "restarts": int(restarts)}


def restart_under_load(machine, _given):
    address = machine.show(NODE, "StatusText").split()[-1]
    kept = len(entries(machine, SOCKETS_KEPT))
    with Load(machine, 10) as load:
        machine.run(["systemctl", "restart", NODE])
        began = int(entries(machine, DRAINING)[-1]["__REALTIME_TIMESTAMP"]) / 1e6
        told = load.finish()
    assert len(entries(machine, SOCKETS_KEPT)) == kept + 1, "the sockets were not used on"
    assert machine.show(NODE, "StatusText").split()[-1] == address, "the port has changed"
    return told | {"pause s": load.pause_after(began), "node ready ms": round(started_s(machine, NODE) * 1e3)}


def kill_under_load(machine, _given):
    with Load(machine, 20, ["--resubmit", "3"]) as load:
        began = time.time()
        machine.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", NODE])
        told = load.finish()
    return told | {"pause s": load.pause_after(began)}


def upgrade_under_load(machine, given):
    if not given.upgrade:
        raise Skipped("no --upgrade was given")
    before = machine.shell("dpkg-query --show --showformat='${Version}' ramjet-node")
    pids = [machine.show(unit, "MainPID") for unit in (NODE, MARKET)]
    with Load(machine, 25) as load:
        began = time.monotonic()
        machine.shell("dpkg --install /upgrade/*.deb")
        took = time.monotonic() - began
        drained = int(entries(machine, DRAINING)[-1]["__REALTIME_TIMESTAMP"]) / 1e6
        told = load.finish()
    after = machine.shell("dpkg-query --show --showformat='${Version}' ramjet-node")
    assert after != before, f"both are {before}"
    for unit, pid in zip((NODE, MARKET), pids):
        assert machine.show(unit, "MainPID") not in ("0", pid), f"{unit} still runs the old program"
    task(machine)
    return told | {"from": before, "to": after, "dpkg s": round(took, 1), "pause s": load.pause_after(drained)}


# What an agent tries and must not manage; it writes what it could do.
PROBE = """#!/bin/sh
exec >/var/cache/ramjet-agents/probe 2>/dev/null
echo "socket $RAMJET_AGENT_SOCKET"
[ -d "${RAMJET_AGENT_SOCKET%/*}" ] && echo "folder"
cat /var/lib/ramjet-node/identity.json && echo "! read the identity"
ls /run/ramjet-node/node.sock && echo "! sees the node's socket"
cat /etc/ramjet/node.toml && echo "! reads the node's settings"
head -c 1 /proc/NODE/mem && echo "! reads the node's memory"
ls /proc/NODE/fd/ && echo "! reads the node's descriptors"
[ "$(ls /sys/class/net)" = lo ] || echo "! sees a network"
touch /usr/probe /etc/probe /var/lib/probe && echo "! writes outside its cache"
touch /var/cache/ramjet-agents/mine && echo "cache"
perl -MSocket -e '
    socket(my $node, PF_UNIX, SOCK_SEQPACKET, 0) or die;
    connect($node, pack_sockaddr_un($ENV{RAMJET_AGENT_SOCKET})) or die;
    send($node, pack("vvV", 1, 1, 0) . q({"skill":"probe","max_batch":1}), 0);
    recv($node, my $answer, 65536, 0);
    print "answer ", unpack("v", $answer), "\n"'
echo end
exec sleep 600
"""


def agent(machine, _given):
    unit = "ramjet-agent@probe"
    probe = machine.path("/opt/probe")
    probe.write_text(PROBE.replace("NODE", machine.show(NODE, "MainPID")))
    probe.chmod(0o755)
    try:
        machine.path("/etc/ramjet/agents/probe.conf").write_text("COMMAND=/bin/sh /opt/probe\n")
        machine.run(["systemctl", "start", unit])
        told = machine.path("/var/cache/ramjet-agents/probe")
        machine.wait("the probe ends", lambda: told.exists() and "\nend\n" in told.read_text())
    finally:
        probe.unlink()
    lines = told.read_text().splitlines()
    assert not [line for line in lines if line.startswith("!")], lines
    # 2 is WELCOME: the node takes it for one of its own user, though each has a namespace of users.
    for expected in ("socket /run/ramjet-agents/agents.sock", "folder", "cache", "answer 2"):
        assert expected in lines, f"{expected!r} is not in {lines}"
    user = machine.show(unit, "User")
    machine.run(["systemctl", "restart", NODE])
    assert state(machine, unit) == STARTED, "the agent did not outlive a restart of the node"
    return {"user": user, "tried": sum("echo \"!" in line for line in PROBE.splitlines())}


def remove(machine, _given):
    machine.shell("dpkg --remove ramjet-node ramjet-registry ramjet")
    assert not machine.shell("pgrep -x ramjet || true").strip(), "a process outlived the removal"
    assert state(machine, "ramjet-agent@probe") != STARTED, "the agent outlived the removal"
    settings_left = machine.shell("ls /etc/ramjet").split()
    assert {"node.toml", "registry.toml"} <= set(settings_left), settings_left
    machine.shell("rm -f /etc/ramjet/agents/probe.conf; dpkg --purge ramjet-node ramjet-registry ramjet")
    left = sorted(files(machine) - machine.before)
    stray = [name for name in left if not name.startswith(LEFT)]
    assert not stray, f"left behind: {stray}"
    assert machine.path("/var/lib/ramjet-node/identity.json").exists(), "the identity is gone"
    earned = sorted(name for name in left if name.count("/") == 3)
    return {"left": f"{len(left)} ({' '.join(earned)} and below)"}


def once_more(machine, _given):
    """The README's path in one go, on a system from which all was removed but what was earned."""
    began = time.monotonic()
    said = [typed(machine, name) for name in readme.NAMES][-1]
    assert '"lang":"deu"' in said, said
    return {"commands": len(readme.NAMES), "s": round(time.monotonic() - began, 1)}


CASES = [install, start, first_task, hardening, journal, killed, hung, reload, wrong_setting, restart_under_load,
         kill_under_load, upgrade_under_load, agent, remove, once_more]
