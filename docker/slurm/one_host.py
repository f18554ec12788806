# ruff: noqa: INP001, T201, TID251 (a program for the system's python3 that is no part of the package)
"""A whole SLURM on one machine inside one folder: no systemd, no cgroups, nothing in /etc.

    python3 one_host.py up|down|set|start|kill|watch [FOLDER] [flags]

The folder holds the munge key and socket, MariaDB's data and socket, slurm.conf, state, logs and
the pids of what was started, so that several clusters can live side by side. Everything runs as
the user who typed the command (root or not); only that user can have jobs unless it is root.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd")
HEALTHY = ("idle", "mixed", "allocated", "completing")
MAX_SOCKET_PATH = 107  # sockaddr_un
DEFAULT_FOLDER = "~/.local/state/get3d_cluster/slurm"


class ClusterError(Exception):
    """Something that the user can put right; the text says how."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a cluster can differ in; the flags of `up` and `set` have the same names."""

    nodes: int = 4
    cpus: int = 2
    grace: int = 10
    cancel_grace: int = 10
    kill_wait: int = 5
    user_signal: str = "no"
    preempt: str = "partition"
    max_array: int = 1001
    slurmd_timeout: int = 30
    job_requeue: int = 1


@dataclasses.dataclass(frozen=True)
class Home:
    """The folder of one cluster."""

    path: Path

    @property
    def conf(self) -> Path:
        return self.path / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.path / "munge.socket"

    @property
    def database_socket(self) -> Path:
        return self.path / "database.socket"

    def log(self, name: str) -> Path:
        return self.path / "log" / f"{name}.log"

    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        ours = {
            "PATH": search_path(),
            "SLURM_CONF": str(self.conf),
            "MYSQL_UNIX_PORT": str(self.database_socket),
        }
        return clean | ours


# ---------------------------------------------------------------------------- records


def search_path() -> str:
    """Return PATH with the folders of daemons, which a normal user's lacks."""
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def me() -> str:
    """Return the name of the user who types, not of the one who logged in."""
    return pwd.getpwuid(os.getuid()).pw_name


def read_json(path: Path) -> dict[str, Any]:
    """Return what a file holds, nothing when it is missing or torn."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file in one step, so that a reader never sees half of it."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text)
    new.chmod(mode)
    new.replace(path)


def process_start(pid: int) -> int | None:
    """Return the start time of a process in clock ticks after boot, None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def recorded(home: Home) -> dict[str, list[int]]:
    """Return name: [pid, start time] of every daemon that was started here."""
    return read_json(home.path / "pids.json")


def alive(home: Home) -> dict[str, int]:
    """Return name: pid of the daemons that still live; a pid used anew by others does not count."""
    pairs = recorded(home).items()
    return {name: pid for name, (pid, start) in pairs if process_start(pid) == start}


def record(home: Home, name: str, pid: int) -> None:
    """Keep the pid of a daemon with its start time."""
    pids = recorded(home) | {name: [pid, process_start(pid) or 0]}
    write(home.path / "pids.json", json.dumps(pids))


@contextlib.contextmanager
def locked(home: Home) -> Iterator[None]:
    """Keep other commands off this folder meanwhile."""
    home.path.mkdir(parents=True, exist_ok=True)
    with (home.path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------------------- configuration


SAME_EVERYWHERE = """\
SlurmctldDebug=verbose
SlurmdDebug=verbose
SlurmdParameters=config_overrides
MinJobAge=300
InactiveLimit=0
MessageTimeout=20
ReturnToService=2
PropagateResourceLimits=NONE
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,bf_continue
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoreFlags=job_comment
"""
"""The lines of slurm.conf that neither the folder nor a setting changes."""


def slurm_conf(home: Home, settings: Settings, ports: list[int]) -> str:
    """Return slurm.conf. The first port is slurmctld's, the second slurmdbd's, the others the nodes'."""
    lines = [
        "# Written by docker/slurm; `set` and `up` write it anew.",
        *place_lines(home, ports),
        SAME_EVERYWHERE.rstrip(),
        *setting_lines(settings),
        *node_lines(settings, ports[2:]),
        *partition_lines(settings),
    ]
    return "\n".join(lines) + "\n"


def place_lines(home: Home, ports: list[int]) -> list[str]:
    """Return who runs the cluster, and where its files and its daemons are."""
    return [
        "ClusterName=toy",
        f"SlurmctldHost={socket.gethostname()}(127.0.0.1)",
        f"SlurmctldPort={ports[0]}",
        f"SlurmUser={me()}",
        f"SlurmdUser={me()}",
        "AuthType=auth/munge",
        f"AuthInfo=socket={home.munge_socket},cred_expire=5",
        f"StateSaveLocation={home.path}/state",
        f"SlurmdSpoolDir={home.path}/spool/%n",
        f"SlurmctldPidFile={home.path}/run/slurmctld.pid",
        f"SlurmdPidFile={home.path}/run/%n.pid",
        f"SlurmctldLogFile={home.log('slurmctld')}",
        f"SlurmdLogFile={home.path}/log/%n.log",
        f"AccountingStoragePort={ports[1]}",
        f"AccountingStoragePass=socket={home.munge_socket}",
    ]


def setting_lines(settings: Settings) -> list[str]:
    """Return what a cluster can differ in."""
    by_qos = settings.preempt == "qos"
    send = ",preempt_send_user_signal" if settings.user_signal == "yes" else ""
    return [
        f"SlurmctldParameters=idle_on_node_suspend{send}",
        f"SlurmdTimeout={settings.slurmd_timeout}",
        f"KillWait={settings.kill_wait}",
        f"JobRequeue={settings.job_requeue}",
        f"MaxArraySize={settings.max_array}",
        f"PreemptType=preempt/{'qos' if by_qos else 'partition_prio'}",
        *(["AccountingStorageEnforce=associations,qos"] if by_qos else []),
    ]


def node_lines(settings: Settings, ports: list[int]) -> list[str]:
    """Return one node for each port; all are this machine."""
    host = socket.gethostname()
    return [
        f"NodeName=node{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
        f" CPUs={settings.cpus} RealMemory=1000 State=UNKNOWN"
        for i, port in enumerate(ports, 1)
    ]


def partition_lines(settings: Settings) -> list[str]:
    """Return the partitions: low is preempted by high and requeued, cancel is preempted and cancelled."""
    priorities = {"low": "Default=YES PriorityTier=1", "high": "PriorityTier=10", "cancel": "PriorityTier=1"}
    # The mode and the grace are the victim's partition's, or in qos mode the victim's QOS's.
    preempted = {
        "low": f"PreemptMode=REQUEUE GraceTime={settings.grace}",
        "high": "PreemptMode=OFF",
        "cancel": f"PreemptMode=CANCEL GraceTime={settings.cancel_grace}",
    }
    if settings.preempt == "qos":
        priorities["high"] = "PriorityTier=1"
        preempted = dict.fromkeys(preempted, "")
    every = "Nodes=ALL MaxTime=INFINITE State=UP"
    return [f"PartitionName={name} {priorities[name]} {preempted[name]} {every}" for name in priorities]


def slurmdbd_conf(home: Home, port: int) -> str:
    """Return slurmdbd.conf."""
    # StorageHost=localhost goes through the socket that MYSQL_UNIX_PORT names.
    return f"""\
AuthType=auth/munge
AuthInfo=socket={home.munge_socket}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={me()}
PidFile={home.path}/run/slurmdbd.pid
LogFile={home.log("slurmdbd")}
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""


def free_ports(count: int, first: int | None) -> list[int]:
    """Return `count` free ports in a row; `first` may ask for a certain one."""
    candidates = [first] if first else range(20000 + os.getpid() % 100 * 100, 32000, 50)
    for start in candidates:
        ports = list(range(start, start + count))
        busy = [port for port in ports if not is_free(port)]
        if not busy:
            return ports
        if first:
            raise ClusterError(f"port {busy[0]} is in use: choose another with --port, or leave it out")
    raise ClusterError("no free ports between 20000 and 32000")


def is_free(port: int) -> bool:
    """Say whether nobody listens on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def configure(home: Home, settings: Settings, ports: list[int]) -> None:
    """Write all that the daemons read; keep what is there of key and state."""
    for name in ("log", "run", "state", "spool", "munge", "scratch"):
        (home.path / name).mkdir(exist_ok=True)
    state = {"settings": dataclasses.asdict(settings), "ports": ports}
    write(home.path / "settings.json", json.dumps(state, indent=1))
    write(home.conf, slurm_conf(home, settings, ports))
    write(home.path / "slurmdbd.conf", slurmdbd_conf(home, ports[1]), 0o600)
    write(home.path / "cgroup.conf", "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    write(home.path / "env.sh", f"export SLURM_CONF={home.conf}\n")
    key = home.path / "munge" / "key"
    if not key.exists():
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)


# ---------------------------------------------------------------------------- daemons


def commands(home: Home, settings: Settings) -> dict[str, list[str]]:
    """Return the command of every daemon, all in the foreground, so that their pids are ours."""
    munge = home.path / "munge"
    nodes = {f"node{i}": ["slurmd", "-D", "-N", f"node{i}"] for i in range(1, settings.nodes + 1)}
    return {
        "munged": [
            "munged", "--foreground", "--force", "--num-threads=2", f"--socket={home.munge_socket}",
            f"--key-file={munge}/key", f"--seed-file={munge}/seed", f"--pid-file={munge}/pid",
            f"--log-file={home.log('munged')}",
        ],
        "mariadbd": ["mariadbd", *database_options(home), "--skip-networking",
                     f"--socket={home.database_socket}", f"--pid-file={home.path}/run/mariadbd.pid"],
        "slurmdbd": ["slurmdbd", "-D"],
        "slurmctld": ["slurmctld", "-D"],
        **nodes,
    }  # fmt: skip


def database_options(home: Home) -> list[str]:
    """Return what both mariadbd and its installer are told."""
    # mariadbd removes temporary tables that it finds at its start, so that two must not share /tmp.
    return ["--no-defaults", f"--user={me()}", f"--datadir={home.path}/database", f"--tmpdir={home.path}/scratch",
            "--innodb-use-native-aio=0", "--innodb-log-file-size=8M", "--performance-schema=0",
            "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"]  # fmt: skip


def start(home: Home, name: str, command: list[str]) -> None:
    """Start one daemon in a session of its own."""
    with home.log(name).with_suffix(".err").open("ab") as err:
        process = subprocess.Popen(
            command, env=home.environment(), cwd=home.path, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=err, stderr=err,
        )  # fmt: skip
    record(home, name, process.pid)


def call(home: Home, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM against this cluster."""
    return subprocess.run(
        command, env=home.environment(), stdin=subprocess.DEVNULL, text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def wait_for(home: Home, name: str, ready: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until a daemon does what it is for; show the end of its log when it does not."""
    deadline = time.monotonic() + seconds
    while not ready():
        if name not in alive(home):
            raise ClusterError(f"{name} ended at once; its log ends with\n{tail(home, name)}")
        if time.monotonic() > deadline:
            raise ClusterError(f"{name} is not ready after {seconds:.0f} s; its log:\n{tail(home, name)}")
        time.sleep(0.1)


def tail(home: Home, name: str, lines: int = 15) -> str:
    """Return the end of a daemon's log, or of what it said before it had one."""
    for path in (home.log(name), home.log(name).with_suffix(".err")):
        if path.exists() and path.stat().st_size:
            return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    return f"(nothing in {home.log(name)})"


def listens(port: int) -> bool:
    """Say whether somebody answers on a port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def node_states(home: Home) -> list[str]:
    """Return the state of every node, nothing while the controller does not answer."""
    answer = call(home, "sinfo", "-h", "-N", "-p", "low", "-o", "%T")
    return answer.stdout.split() if answer.returncode == 0 else []


def nodes_healthy(home: Home, count: int) -> bool:
    """Say whether all nodes can work."""
    states = node_states(home)
    return len(states) == count and all(state in HEALTHY for state in states)


# ---------------------------------------------------------------------------- up


def make_database(home: Home) -> None:
    """Make MariaDB's data folder unless it is there; half a folder is made anew."""
    done = home.path / "database.made"
    if done.exists():
        return
    shutil.rmtree(home.path / "database", ignore_errors=True)
    made = call(
        home, "mariadb-install-db", *database_options(home), "--skip-test-db", "--force", "--skip-name-resolve",
        "--auth-root-authentication-method=normal",
    )  # fmt: skip
    if made.returncode:
        said = [line for line in (made.stdout + made.stderr).splitlines() if "ERROR" in line]
        raise ClusterError("\n".join(["MariaDB could not make its data folder:", *said[-10:]]))
    done.touch()


def make_accounts(home: Home, settings: Settings) -> None:
    """Add what sacctmgr must know: the cluster, an account, the user; in qos mode three QOS."""
    if not call(home, "sacctmgr", "-nP", "show", "cluster", "toy").stdout.strip():
        manage(home, "add", "cluster", "toy")
        manage(home, "add", "account", "toy", "cluster=toy")
        manage(home, "add", "user", me(), "account=toy", "cluster=toy")
    if settings.preempt == "qos":
        manage(home, "add", "qos", "low,high,cancel")
        set_qos(home, settings)
        allowed = ("qos=low,high,cancel,normal", "defaultqos=low")
        manage(home, "modify", "user", me(), "set", *allowed)


def set_qos(home: Home, settings: Settings) -> None:
    """Give the three QOS their grace and mode, and high the right to preempt the others."""
    graces = (("low", "requeue", settings.grace), ("cancel", "cancel", settings.cancel_grace))
    for name, mode, grace in graces:
        change = (f"PreemptMode={mode}", f"GraceTime={grace}", "Priority=1")
        manage(home, "modify", "qos", name, "set", *change)
    manage(home, "modify", "qos", "high", "set", "Preempt=low,cancel", "Priority=100")


def manage(home: Home, *words: str) -> None:
    """Run sacctmgr; what is there already is no error."""
    done = call(home, "sacctmgr", "-i", *words)
    if done.returncode and "othing new" not in done.stdout + done.stderr:
        raise ClusterError(f"sacctmgr {' '.join(words)}:\n{done.stdout}{done.stderr}")


def up(home: Home, settings: Settings, port: int | None) -> None:
    """Start all daemons, each when the one that it needs answers."""
    check_programs()
    check_path(home)
    ports = free_ports(2 + settings.nodes, port)
    configure(home, settings, ports)
    write(home.path / "pids.json", "{}")
    daemons = commands(home, settings)
    start(home, "munged", daemons.pop("munged"))
    make_database(home)
    start(home, "mariadbd", daemons.pop("mariadbd"))
    wait_for(home, "munged", home.munge_socket.exists)
    wait_for(home, "mariadbd", home.database_socket.exists)
    start(home, "slurmdbd", daemons.pop("slurmdbd"))
    wait_for(home, "slurmdbd", lambda: listens(ports[1]))
    make_accounts(home, settings)
    for name, command in daemons.items():
        start(home, name, command)
    wait_for(home, "slurmctld", lambda: listens(ports[0]))
    wait_for(home, f"node{settings.nodes}", lambda: nodes_healthy(home, settings.nodes))
    bring_back_jobs(home)


def bring_back_jobs(home: Home) -> None:
    """Requeue what ran when the cluster was stopped: `down` ended the processes of those jobs."""
    for job in call(home, "squeue", "-h", "-t", "running,completing", "-o", "%i").stdout.split():
        if call(home, "scontrol", "requeue", job).returncode:
            call(home, "scancel", job)


def check_programs() -> None:
    """Refuse when SLURM is not installed."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=search_path())]
    if missing:
        packages = Path(__file__).with_name("packages.sh")
        raise ClusterError(f"missing programs: {', '.join(missing)}; type: sh {packages}")


def check_path(home: Home) -> None:
    """Refuse a folder that sockets or slurm.conf cannot name."""
    if len(str(home.database_socket)) > MAX_SOCKET_PATH or " " in str(home.path):
        raise ClusterError(f"{home.path}: the path of the folder must be short and without spaces")


# ---------------------------------------------------------------------------- down


def down(home: Home, *, hard: bool = False) -> int:
    """Stop what was started here, and what its jobs left; return how many processes that were.

    With `hard` nothing has to be kept for another start.
    """
    living = alive(home)
    nodes = [pid for name, pid in living.items() if name.startswith("node")]
    first = signal.SIGKILL if hard else signal.SIGTERM
    # The nodes are killed, so that none of them reports the end of its jobs: the controller keeps
    # them in its saved state and `up` brings them back.
    count = stop(nodes, signal.SIGKILL)
    count += stop(job_processes(home), signal.SIGKILL)
    for pair in (("slurmctld", "slurmdbd"), ("mariadbd", "munged")):
        count += stop([living[name] for name in pair if name in living], first)
    with contextlib.suppress(FileNotFoundError):
        (home.path / "pids.json").unlink()
    return count


def stop(pids: list[int], first: signal.Signals = signal.SIGTERM, patience: float = 10.0) -> int:
    """End processes; those that do not end in time are killed."""
    starts = {pid: process_start(pid) for pid in pids}
    living = {pid: start for pid, start in starts.items() if start is not None}
    for sign, seconds in ((first, patience), (signal.SIGKILL, 5.0)):
        send(living, sign)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(process_start(p) == s for p, s in living.items()):
            time.sleep(0.05)
    return len(living)


def send(processes: dict[int, int], sign: signal.Signals) -> None:
    """Send a signal to processes that are still the same."""
    for pid, began in processes.items():
        if process_start(pid) == began:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, sign)


def job_processes(home: Home) -> list[int]:
    """Return the processes of this cluster's jobs: by their environment, and their descendants."""
    ours, parents = set(), {}
    mine = f"SLURM_CONF={home.conf}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(entry.name)
            parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "environ").read_bytes().split(b"\0")
            in_job = any(word.startswith(b"SLURM_JOB_ID=") for word in words)
            if mine in words and (in_job or is_stepd(pid)):
                ours.add(pid)
    return sorted(ours | descendants(ours, parents))


def is_stepd(pid: int) -> bool:
    """Say whether a process is the guardian that a node starts for each step."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"slurmstepd")
    except OSError:
        return False


def descendants(roots: set[int], parents: dict[int, int]) -> set[int]:
    """Return all children of processes, and theirs."""
    found: set[int] = set()
    while new := {p for p, parent in parents.items() if parent in roots | found} - found - roots:
        found |= new
    return found


# ---------------------------------------------------------------------------- command line


def command_up(home: Home, args: argparse.Namespace) -> None:
    """Start the cluster unless it is up; print the line that makes it a shell's SLURM."""
    given = given_settings(args)
    with locked(home):
        kept = read_json(home.path / "settings.json").get("settings", {})
        if is_up(home):
            others = {k: v for k, v in given.items() if kept.get(k) != v}
            if others:
                raise ClusterError(
                    f"already up in {home.path} with other settings than {others}: stop it first"
                )
            print(f"# already up in {home.path}")
        else:
            down(home)
            began = time.monotonic()
            try:
                up(home, Settings(**given), args.port)
            except BaseException:
                down(home)
                raise
            print(f"# {Settings(**given).nodes} nodes are up after {time.monotonic() - began:.1f} s")
    print((home.path / "env.sh").read_text(), end="")


def is_up(home: Home) -> bool:
    """Say whether every daemon that was started still lives."""
    kept = recorded(home)
    return bool(kept) and set(alive(home)) == set(kept) and "slurmctld" in kept


def command_down(home: Home, args: argparse.Namespace) -> None:
    """Stop the cluster; with --wipe, forget it."""
    if not home.path.is_dir():
        print(f"nothing is up in {home.path}")
        return
    with locked(home):
        count = down(home, hard=args.wipe)
    print(f"stopped {count} processes of {home.path}" if count else f"nothing is up in {home.path}")
    if args.wipe:
        shutil.rmtree(home.path, ignore_errors=True)


def command_set(home: Home, args: argparse.Namespace) -> None:
    """Change settings of a cluster that is up, and have the controller read them."""
    with locked(home):
        state = read_json(home.path / "settings.json")
        if not is_up(home):
            raise ClusterError(f"nothing is up in {home.path}: start it first")
        settings = Settings(**(state["settings"] | given_settings(args)))
        configure(home, settings, list(state["ports"]))
        if settings.preempt == "qos":
            set_qos(home, settings)
        done = call(home, "scontrol", "reconfigure")
        if done.returncode:
            raise ClusterError(f"scontrol reconfigure: {done.stderr}\n{tail(home, 'slurmctld')}")


def command_start(home: Home, args: argparse.Namespace) -> None:
    """Start one daemon that has died or was killed."""
    with locked(home):
        state = read_json(home.path / "settings.json")
        daemons = commands(home, Settings(**state["settings"]))
        if args.daemon not in daemons:
            raise ClusterError(f"{args.daemon}: not one of {', '.join(daemons)}")
        if args.daemon not in alive(home):
            start(home, args.daemon, daemons[args.daemon])


def command_kill(home: Home, args: argparse.Namespace) -> None:
    """Kill one daemon at once, as when a machine loses power; jobs on a node live on.

    With `jobs` for a daemon, kill what all jobs run, and leave the daemons alone.
    """
    if args.daemon == "jobs":
        stop([pid for pid in job_processes(home) if not is_stepd(pid)], signal.SIGKILL)
        return
    pid = alive(home).get(args.daemon)
    if pid is None:
        raise ClusterError(f"{args.daemon}: not one of {', '.join(alive(home)) or 'the living'}")
    stop([pid], signal.SIGKILL)


def command_watch(home: Home, args: argparse.Namespace) -> None:
    """Take the cluster down when the writer of our standard input is gone."""
    for sign in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(sign, signal.SIG_IGN)
    sys.stdin.buffer.read()
    command_down(home, args)


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were typed."""
    names = [field.name for field in dataclasses.fields(Settings)]
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    main = argparse.ArgumentParser(description="SLURM on one machine, in one folder")
    main.add_argument("command", choices=("up", "down", "set", "start", "kill", "watch"))
    main.add_argument("folder", nargs="?", help=f"default: $GET3D_SLURM or {DEFAULT_FOLDER}")
    main.add_argument("--nodes", type=int, help="nodes (4)")
    main.add_argument("--cpus", type=int, help="CPUs of a node as SLURM counts them (2)")
    main.add_argument("--grace", type=int, help="GraceTime of low, seconds (10)")
    main.add_argument("--cancel-grace", type=int, help="GraceTime of cancel, seconds (10)")
    main.add_argument("--kill-wait", type=int, help="KillWait, seconds (5)")
    main.add_argument("--user-signal", choices=("yes", "no"), help="preempt_send_user_signal (no)")
    main.add_argument("--preempt", choices=("partition", "qos"), help="who preempts whom (partition)")
    main.add_argument("--max-array", type=int, help="MaxArraySize (1001)")
    main.add_argument("--slurmd-timeout", type=int, help="SlurmdTimeout, seconds (30)")
    main.add_argument("--job-requeue", type=int, choices=(0, 1), help="JobRequeue (1)")
    main.add_argument("--port", type=int, help="first of nodes + 2 ports (a free range)")
    main.add_argument("--wipe", action="store_true", help="down: remove the folder, too")
    main.add_argument("--daemon", help="start, kill: munged, mariadbd, slurmdbd, slurmctld, node1 …")
    return main


def main() -> int:
    """Run one command; return 0, or 2 when the user must do something."""
    args = parser().parse_args()
    folder = args.folder or os.environ.get("GET3D_SLURM") or DEFAULT_FOLDER
    home = Home(Path(folder).expanduser().resolve())
    table = {"up": command_up, "down": command_down, "set": command_set,
             "start": command_start, "kill": command_kill, "watch": command_watch}  # fmt: skip
    try:
        table[args.command](home, args)
    except ClusterError as failure:
        print(failure, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
