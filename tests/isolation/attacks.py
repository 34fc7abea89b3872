"""What an agent must not be able to do: one function for each attempt. Add yours at the end of its section.

Each is run inside a real session by `agent.py`, which hands it a `Target`: what neighbours and the host planted. An
attack that succeeds returns what it got (or did); one that fails raises OSError, ValueError or LookupError, which is
what must happen. The first line of its docstring says what it tries.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Target:
    """Of the neighbours and the host: `names` of what they planted (each plants one of everything under its name),
    `pids` (host's view), `ports`, `keys` of shared memory. `secrets` are masked (each byte plus one), so that looking
    for one does not put it into one's own memory; `own` is the attacker's own, for checking the tool itself."""

    names: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    own: str = ""


Attack = Callable[[Target], Any]
ATTACKS: dict[str, Attack] = {}  # must fail
CONTAINED: dict[str, Attack] = {}  # must hit a limit: the attack returns True if it did


def attack(function: Attack) -> Attack:
    ATTACKS[function.__name__] = function
    return function


def contained(function: Attack) -> Attack:
    CONTAINED[function.__name__] = function
    return function


class Blocked(OSError):
    """Nothing was found or reached."""


# --- Tools


def any_of(attempts: list[Callable[[], Any]]) -> Any:
    """The first attempt that succeeds; raises the last failure if none does."""
    failure: Exception = Blocked("nothing to try")
    for attempt in attempts:
        try:
            result = attempt()
        except (OSError, ValueError, LookupError) as error:
            failure = error
            continue
        return result
    raise failure


def call(name: str, *arguments: Any) -> int:
    """A system call by its name, past any wrapper. x86-64 and arm64."""
    number = SYSTEM_CALLS[name][0 if os.uname().machine == "x86_64" else 1]
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return int(result)


SYSTEM_CALLS = {  # name: (x86-64, arm64)
    "add_key": (248, 217), "bpf": (321, 280), "clone": (56, 220), "clone3": (435, 435), "finit_module": (313, 273),
    "fsopen": (430, 430), "io_uring_setup": (425, 425), "kcmp": (312, 272), "kexec_load": (246, 104),
    "keyctl": (250, 219), "mount": (165, 40), "move_mount": (429, 429), "mseal_next": (470, 470),
    "open_by_handle_at": (304, 265), "open_tree": (428, 428), "perf_event_open": (298, 241), "personality": (135, 92),
    "pidfd_getfd": (438, 438), "pivot_root": (155, 41), "process_vm_readv": (310, 270), "ptrace": (101, 117),
    "setns": (308, 268), "swapon": (167, 224), "syslog": (103, 116), "umount2": (166, 39), "unshare": (272, 97),
    "userfaultfd": (323, 282),
}  # fmt: skip


def in_child(function: Callable[[], Any]) -> str:
    """For attempts that would change this process."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(abs(code), os.strerror(abs(code)))
    return "done"


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(200)


def lines(path: str) -> list[str]:
    with open(path) as file:
        return file.read().splitlines()


def write(path: str) -> str:
    existed = os.path.lexists(path)
    with open(path, "r+b" if existed else "wb") as file:
        if not existed:
            file.write(b"x")
    return f"opened {path} for writing"


def visible_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def foreign(target: Target) -> list[int]:
    """Pids that are somebody else's. One of that number may be ours by chance."""
    return [pid for pid in target.pids if not ours(pid)]


def ours(pid: int) -> bool:
    """Whether this process or one below it."""
    try:
        while pid not in (0, os.getpid()):
            pid = int(lines(f"/proc/{pid}/stat")[0].rpartition(")")[2].split()[1])
    except OSError:
        return False
    return pid != 0


_MASK = bytes((value + 1) % 256 for value in range(256))


def scan_memory(masked: list[str]) -> list[str]:
    """Which of the secrets, all beginning alike, are anywhere in this process's memory. Memory is masked as they are
    before it is searched: what the search itself leaves behind is masked once or twice, never plain."""
    wanted = {bytes.fromhex(text): text for text in masked}
    first, last = min(wanted), max(wanted)
    beginning = first[: next(at for at, (one, other) in enumerate(zip(first, last, strict=True)) if one != other)]
    found = set()
    with open("/proc/self/mem", "rb", 0) as memory, open("/proc/self/maps") as maps:
        for line in maps.read().splitlines():
            span, permissions, *_, name = line.split()
            if not permissions.startswith("r") or "[v" in name or (name.startswith("/") and "w" not in permissions):
                continue  # unreadable, or a file's own content
            start, end = (int(text, 16) for text in span.split("-"))
            try:
                memory.seek(start)
                data = memory.read(end - start).translate(_MASK)
            except (OSError, OverflowError, ValueError):
                continue
            position = data.find(beginning)
            while position >= 0:
                found |= {text for secret, text in wanted.items() if data.startswith(secret, position)}
                position = data.find(beginning, position + 1)
    return sorted(found)


# --- Files


@attack
def files_of_others(target: Target) -> Any:
    """Read what neighbours and the host left in shared places."""
    places = ("/tmp", "/dev/shm", "/var/tmp", "/run", "/home", "/home/agent", "/root", "/mnt", "/var/task", "/")
    return any_of([lambda path=f"{place}/{name}": read(path) for place in places for name in target.names])


@attack
def any_name_of_others(target: Target) -> Any:
    """Find a name of theirs anywhere in the tree."""
    for folder, folders, files in os.walk("/"):
        if folder.startswith(("/proc", "/usr", "/opt/python", sys.base_prefix)):
            folders.clear()
            continue
        for name in (*folders, *files):
            if name in target.names:
                return os.path.join(folder, name)
    raise Blocked("no such name")


@attack
def host_folders(target: Target) -> Any:
    """List the host's homes, logs, state, and the platform's own files."""
    folders = ("/root", "/var/log", "/var/lib", "/etc/ssl/private", "/etc/systemd", "/boot", "/mnt", "/media", "/srv")
    return any_of([lambda folder=folder: os.listdir(folder)[0] for folder in folders if not _interpreter_in(folder)])


def _interpreter_in(folder: str) -> bool:
    return sys.base_prefix.startswith(folder + "/")


@attack
def files_beside_the_interpreter(target: Target) -> Any:
    """Where the interpreter is in a home, see anything else of that home."""
    parent = os.path.dirname(sys.base_prefix)
    while len(parent) > 1 and not parent.startswith("/usr"):
        others = [name for name in os.listdir(parent) if not sys.base_prefix.startswith(os.path.join(parent, name))]
        if others:
            return parent, others
        parent = os.path.dirname(parent) if os.path.dirname(parent) != "/" else ""
    raise Blocked("nothing but the interpreter")


@attack
def host_configuration(target: Target) -> Any:
    """Read the host's accounts and network configuration."""
    if "agent" not in read("/etc/passwd").decode():
        return read("/etc/passwd")
    files = ("/etc/shadow", "/etc/machine-id", "/etc/fstab", "/etc/sudoers", "/etc/environment", "/.dockerenv")
    return any_of([lambda path=path: read(path) for path in files])


@attack
def write_into_what_is_shared(target: Target) -> Any:
    """Leave something where another session could find it."""
    libraries = os.path.dirname(os.__file__)
    places = ("/", "/dev", "/etc", "/usr", "/usr/lib", "/opt/python", "/var/task", "/.agentkeep", "/var", "/var/empty",
              "/opt", libraries, sys.base_prefix, "/.agentkeep/_agentkeep_sandbox")  # fmt: skip
    return any_of([lambda place=place: write(f"{place}/left-behind") for place in places])


@attack
def change_what_is_shared(target: Target) -> Any:
    """Change shared files: their content, mode, owner, times, attributes."""
    paths = ("/etc/passwd", "/var/task/agent.py", os.__file__, "/.agentkeep/_agentkeep_sandbox/session.py", "/dev/null")
    attempts: list[Callable[[], Any]] = []
    for path in paths:
        attempts += [
            lambda path=path: os.chmod(path, 0o777),
            lambda path=path: os.chown(path, os.getuid(), os.getgid()),
            lambda path=path: os.utime(path, (1, 1)),
            lambda path=path: os.setxattr(path, "user.note", b"x"),
            lambda path=path: os.rename(path, path + "-moved"),
            lambda path=path: os.unlink(path),
        ]
        if path != "/dev/null":
            attempts.append(lambda path=path: write(path))
    return any_of(attempts)


@attack
def write_to_the_kernel(target: Target) -> Any:
    """Write into /proc: system settings, triggers, another's scores."""
    paths = ("/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger", "/proc/sys/kernel/msgmax",
             "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/core_pattern", "/proc/sys/net/ipv4/ping_group_range",
             "/proc/sys/fs/file-max", "/proc/self/attr/current")  # fmt: skip

    def change(path: str) -> str:
        with open(path, "r+b", 0) as file:
            file.write(b"1")
        return path

    return any_of([lambda path=path: change(path) for path in paths if path != "/proc/sysrq-trigger"])


@attack
def masked_parts_of_proc(target: Target) -> Any:
    """Read kernel symbols, keys, timers of the machine."""

    def content(path: str) -> bytes:
        data = read(path)
        if not data:
            raise Blocked("empty")
        return data

    names = ("kcore", "keys", "key-users", "kallsyms", "modules", "timer_list", "sched_debug")
    return any_of([lambda name=name: content(f"/proc/{name}") for name in names])


@attack
def folders_of_the_kernel(target: Target) -> Any:
    """/sys, the control groups, the debug file systems, the machine's devices."""

    def listed(path: str) -> list[str]:
        names = os.listdir(path)
        if not names:
            raise Blocked("empty")
        return names

    folders = (
        "/sys",
        "/sys/fs/cgroup",
        "/sys/kernel",
        "/proc/scsi",
        "/proc/irq",
        "/dev/mapper",
        "/dev/disk",
        "/proc/bus",
    )
    return any_of([lambda folder=folder: listed(folder) for folder in folders])


@attack
def unexpected_devices(target: Target) -> Any:
    """A device beyond null, zero, full, random, urandom, tty and pseudo-terminals."""
    known = {"null", "zero", "full", "random", "urandom", "tty", "ptmx"}
    extra = []
    for name in os.listdir("/dev"):
        kind = os.lstat(f"/dev/{name}").st_mode
        if (stat.S_ISBLK(kind) or stat.S_ISCHR(kind)) and name not in known and name != "console":
            extra.append(name)
    if os.listdir("/dev/pts") not in ([], ["ptmx"]):
        extra.append(f"terminals {os.listdir('/dev/pts')}")
    if not extra:
        raise Blocked("none")
    return extra


@attack
def writable_mounts_that_are_not_ours(target: Target) -> Any:
    """A writable file system that is not one of the session's own."""
    own = {"/tmp": "tmpfs", "/home": "tmpfs", "/run": "tmpfs", "/dev/shm": "tmpfs", "/var/tmp": "tmpfs",
           "/proc": "proc", "/dev/pts": "devpts"}  # fmt: skip
    found = []
    for line in lines("/proc/self/mountinfo"):
        mount, _, system = line.partition(" - ")
        point, options = mount.split()[4:6]
        kind, _, superblock = system.split()[:3]
        device_node = point.startswith("/dev/") and os.path.exists(point) and stat.S_ISCHR(os.stat(point).st_mode)
        masked = point.startswith("/proc/") and stat.S_ISCHR(os.stat(point).st_mode)
        writable = "rw" in options.split(",") and "rw" in superblock.split(",")
        if writable and own.get(point) != kind and not device_node and not masked:
            found.append(line.strip())
    if not found:
        raise Blocked("none")
    return found


# --- Processes


@attack
def processes_of_others(target: Target) -> Any:
    """See any process that is not this session's own."""
    strangers = [pid for pid in visible_pids() if not ours(pid) and os.path.exists(f"/proc/{pid}")]
    if not strangers:
        raise Blocked("only our own")
    return strangers


@attack
def process_arguments_of_others(target: Target) -> Any:
    """Find a neighbour's or the host's name in the arguments of any process."""
    for pid in visible_pids():
        line = read(f"/proc/{pid}/cmdline").decode(errors="replace")
        if any(name in line for name in target.names):
            return line
    raise Blocked("not found")


@attack
def proc_entries_of_others(target: Target) -> Any:
    """Environment, files, memory of a neighbour, the fork server, the platform."""
    entries = ("environ", "cmdline", "maps", "mem", "root/tmp", "fd/0", "stat")
    return any_of([lambda path=f"/proc/{pid}/{entry}": read(path) for pid in foreign(target) for entry in entries])


@attack
def environment_of_process_one(target: Target) -> Any:
    """What the launcher of this session had in its environment."""
    with open("/proc/1/environ", "rb") as file:
        names = {item.partition(b"=")[0].decode() for item in file.read().split(b"\0") if item}
    allowed = {"PATH", "HOME", "LANG", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "MALLOC_ARENA_MAX",
               "PWD"}  # fmt: skip
    surplus = names - allowed - set(os.environ)
    if not surplus:
        raise Blocked("nothing")
    return surplus


@attack
def signals_to_others(target: Target) -> Any:
    """Signal, or even find, a process outside."""
    return any_of([lambda pid=pid: os.kill(pid, 0) for pid in foreign(target)])


@attack
def pidfds_of_others(target: Target) -> Any:
    """Hold a process outside."""
    return any_of([lambda pid=pid: os.pidfd_open(pid) for pid in foreign(target)])


@attack
def limits_of_others(target: Target) -> Any:
    """Read or change the limits of a process outside."""
    return any_of([lambda pid=pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in foreign(target)])


@attack
def tracing(target: Target) -> Any:
    """Trace oneself or another: ptrace is kernel surface nobody needs."""
    return any_of([lambda pid=pid: call("ptrace", 16, pid, 0, 0) for pid in (*foreign(target), 1)])


@attack
def reading_process_memory(target: Target) -> Any:
    """process_vm_readv, pidfd_getfd, kcmp."""
    pids = (*foreign(target), os.getpid())
    return any_of(
        [lambda pid=pid: call("process_vm_readv", pid, 0, 0, 0, 0, 0) for pid in pids]
        + [lambda: call("pidfd_getfd", os.pidfd_open(os.getpid()), 0, 0)]
        + [lambda: call("kcmp", os.getpid(), 1, 0, 0, 0)]
    )


@attack
def inherited_descriptors(target: Target) -> Any:
    """A descriptor that leads out: anything that was open before the agent began."""
    leads = []
    for name in os.listdir("/proc/self/fd"):
        try:
            where = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if int(name) > 2 and where.startswith(("/", "pipe")) and not where.startswith(("/proc", "/dev", "/usr")):
            leads.append(where)
    leads = [where for where in leads if where.startswith("/") and not where.startswith(("/tmp", "/opt/python"))]
    if not leads:
        raise Blocked("none")
    return leads


# --- Memory


@attack
def secrets_in_own_memory(target: Target) -> Any:
    """A neighbour's token, or a secret of the platform's, left in memory that was forked."""
    found = scan_memory([*target.secrets, target.own])
    if target.own not in found:
        return "the scanner does not work: it misses the session's own secret"
    found.remove(target.own)
    if not found:
        raise Blocked("not found")
    return found


@attack
def memory_shared_for_writing(target: Target) -> Any:
    """A mapping that other processes might share."""
    shared = [
        line.strip()
        for line in lines("/proc/self/maps")
        if line.split()[1].startswith("rw") and line.split()[1][3] == "s"
    ]
    shared = [line for line in shared if "/tmp" not in line and "/dev/zero" not in line and "anon_inode" not in line]
    if not shared:
        raise Blocked("none")
    return shared


@attack
def system_v_shared_memory(target: Target) -> Any:
    """Attach shared memory by the key a neighbour or the host used."""

    def attach(key: int) -> int:
        result = libc.shmget(key, 0, 0)
        if result < 0:
            raise OSError(ctypes.get_errno(), "shmget")
        return int(result)

    return any_of([lambda key=key: attach(key) for key in target.keys])


# --- Network


def answer_of(family: int, address: Any) -> bytes:
    with socket.socket(family) as client:
        client.settimeout(2)
        client.connect(address)
        return client.recv(100)


@attack
def abstract_sockets_of_others(target: Target) -> Any:
    """Connect to Unix sockets that have no file."""
    return any_of([lambda name=name: answer_of(socket.AF_UNIX, f"\0{name}") for name in target.names])


@attack
def loopback_ports_of_others(target: Target) -> Any:
    """Connect to what neighbours and the host serve on loopback."""
    return any_of([lambda port=port: answer_of(socket.AF_INET, ("127.0.0.1", port)) for port in target.ports])


@attack
def a_way_out(target: Target) -> Any:
    """Any route beyond loopback: IPv4, IPv6, link-local metadata services."""

    def route(family: int, address: Any) -> str:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
        return str(address)

    return any_of(
        [
            lambda: route(socket.AF_INET, ("192.0.2.1", 9)),
            lambda: route(socket.AF_INET, ("169.254.169.254", 80)),
            lambda: route(socket.AF_INET, ("169.254.170.3", 80)),
            lambda: route(socket.AF_INET6, ("2001:db8::1", 9)),
            lambda: route(socket.AF_INET6, ("fe80::1", 9, 0, 1)),
        ]
    )


@attack
def other_interfaces(target: Target) -> Any:
    """An interface besides loopback, or the power to change loopback."""
    extra = [name for _, name in socket.if_nameindex() if name != "lo"]
    if extra:
        return extra
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0))
    return "took lo down"


@attack
def the_session_endpoint_itself(target: Target) -> Any:
    """Take over the address at which the platform vends credentials; bind a privileged port."""

    def listen(address: tuple[str, int]) -> str:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            server.bind(address)
            server.listen()
        return str(address)

    addresses = [("169.254.170.2", 80), ("0.0.0.0", 80), ("127.0.0.1", 81)]
    return any_of([lambda address=address: listen(address) for address in addresses])


@attack
def socket_families(target: Target) -> Any:
    """vsock (not tied to the network namespace), packet, netlink-alike, crypto, Bluetooth, raw IP."""
    kinds = [(40, 1, 0), (17, 3, 0), (38, 5, 0), (31, 3, 0), (29, 3, 1), (44, 2, 0), (21, 5, 0), (2, 3, 1), (10, 3, 58)]
    return any_of([lambda kind=kind: socket.socket(*kind).family for kind in kinds])


@attack
def family_numbers_beyond_32_bits(target: Target) -> Any:
    """A family number whose upper half the kernel drops, to slip past a filter that compares all of it."""
    number = {"x86_64": 41}.get(os.uname().machine, 198)
    result = libc.syscall(ctypes.c_long(number), ctypes.c_ulong((1 << 32) | 40), ctypes.c_long(1), ctypes.c_long(0))
    if result < 0:
        raise OSError(ctypes.get_errno(), "socket")
    return result


@attack
def typing_into_terminals(target: Target) -> Any:
    """TIOCSTI puts characters into a terminal's input; also with an upper half the kernel drops."""
    number = {"x86_64": 16}.get(os.uname().machine, 29)
    _, slave = os.openpty()

    def push(request: int) -> str:
        if libc.syscall(ctypes.c_long(number), ctypes.c_long(slave), ctypes.c_ulong(request), b"x") < 0:
            raise OSError(ctypes.get_errno(), "ioctl")
        return hex(request)

    return any_of([lambda: push(0x5412), lambda: push((1 << 32) | 0x5412)])


# --- Power


@attack
def capabilities(target: Target) -> Any:
    """Hold any capability, or be able to gain one."""
    status = dict(line.split(":\t", 1) for line in lines("/proc/self/status") if ":\t" in line)
    held = {name: status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(status[name], 16)}
    if held or status["NoNewPrivs"].strip() != "1" or status["Seccomp"].strip() != "2":
        return held, status["NoNewPrivs"], status["Seccomp"]
    raise Blocked("none")


@attack
def other_users(target: Target) -> Any:
    """Become root, or anybody else; own files as them."""
    return any_of(
        [
            lambda: in_child(lambda: os.setuid(0)),
            lambda: in_child(lambda: os.setuid(1001)),
            lambda: in_child(lambda: os.setgid(0)),
            lambda: in_child(lambda: os.setgroups([0])),
            lambda: os.chown("/tmp", 0, 0),
        ]
    )


@attack
def setuid_programs(target: Target) -> Any:
    """Run su, mount, and the like with their powers."""
    programs = [path for path in ("/usr/bin/su", "/usr/bin/mount", "/usr/bin/passwd") if os.path.exists(path)]
    for program in programs:
        uid = subprocess.run(
            [sys.executable, "-c", f"import os; os.execv('{program}', ['{program}', '--version'])"], capture_output=True
        )
        if uid.returncode < 0:
            return program, uid.returncode
    if os.system("exec 2>/dev/null; su -c 'test $(id -u) = 0' root </dev/null") == 0:
        return "su worked"
    raise Blocked("no power gained")


@attack
def new_namespaces(target: Target) -> Any:
    """A user namespace of one's own gives all capabilities inside, and with them much kernel surface."""
    user = 0x10000000

    def cloned() -> str:
        child = libc.syscall(ctypes.c_long(SYSTEM_CALLS["clone"][os.uname().machine != "x86_64"]),
                             ctypes.c_ulong(user | signal.SIGCHLD), 0, 0, 0, 0)  # fmt: skip
        if child == 0:
            os._exit(0)
        if child < 0:
            raise OSError(ctypes.get_errno(), "clone")
        os.waitpid(child, 0)
        return "cloned"

    return any_of(
        [
            lambda: in_child(lambda: call("unshare", user)),
            lambda: in_child(lambda: call("unshare", 0x00020000)),
            cloned,
            lambda: call("clone3", ctypes.create_string_buffer(88), 88),
            lambda: in_child(lambda: call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0)),
        ]
    )


@attack
def mounting(target: Target) -> Any:
    """Mount, remount, unmount, by old calls and new; change the root."""
    return any_of(
        [
            lambda: call("mount", b"t", b"/tmp", b"tmpfs", 0, 0),
            lambda: call("mount", 0, b"/", 0, 32, 0),
            lambda: call("umount2", b"/proc", 2),
            lambda: call("open_tree", -100, b"/", 1),
            lambda: call("fsopen", b"tmpfs", 0),
            lambda: call("move_mount", -100, b"/tmp", -100, b"/home", 0),
            lambda: call("pivot_root", b"/tmp", b"/tmp"),
            lambda: in_child(lambda: os.chroot("/tmp")),
        ]
    )


@attack
def kernel_surface(target: Target) -> Any:
    """Calls with a history of holes, or that act on the machine."""
    buffer = ctypes.create_string_buffer(256)
    return any_of(
        [
            lambda: call("keyctl", 0, -3, 0),
            lambda: call("add_key", b"user", b"k", b"v", 1, -3),
            lambda: call("io_uring_setup", 4, buffer),
            lambda: call("userfaultfd", 1),
            lambda: call("bpf", 0, buffer, 72),
            lambda: call("perf_event_open", buffer, 0, -1, -1, 0),
            lambda: call("syslog", 3, buffer, 100),
            lambda: call("open_by_handle_at", -100, buffer, 0),
            lambda: call("finit_module", 0, b"", 0),
            lambda: call("kexec_load", 0, 0, 0, 0),
            lambda: call("swapon", b"/tmp/x", 0),
            lambda: call("personality", 0x0400000),
        ]
    )


@attack
def calls_of_the_future(target: Target) -> Any:
    """A call that no list knows must not exist."""
    return any_of([lambda number=number: _raw(number) for number in (900, 1000, 4000)])


def _raw(number: int) -> int:
    result = libc.syscall(ctypes.c_long(number), 0, 0, 0, 0, 0, 0)
    if result < 0:
        code = ctypes.get_errno()
        if code != errno.ENOSYS:
            return code
        raise OSError(code, "")
    return int(result)


@attack
def naming_the_machine(target: Target) -> Any:
    """Change the host's name, clock, or make device nodes."""
    return any_of(
        [
            lambda: socket.sethostname("x"),
            lambda: time.clock_settime(time.CLOCK_REALTIME, 0),
            lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0)),
        ]
    )


@attack
def higher_limits(target: Target) -> Any:
    """Raise one's own limits, priority, or immunity to the killer of memory hogs."""

    def immune() -> str:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-1000")
        return "immune"

    def raised(kind: int) -> str:
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY:
            raise Blocked("not limited")
        resource.setrlimit(kind, (hard + 1, hard + 1))
        return "raised"

    return any_of(
        [
            immune,
            lambda: raised(resource.RLIMIT_NPROC),
            lambda: raised(resource.RLIMIT_NOFILE),
            lambda: raised(resource.RLIMIT_FSIZE),
            lambda: in_child(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))),
            lambda: in_child(lambda: os.nice(-5)),
        ]
    )


# --- Using things up: these must meet a limit, and the session survives


@contained
def fork_bomb(target: Target) -> bool:
    """Processes without end."""
    children = []
    try:
        for _ in range(1000):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            children.append(child)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
    return False


@contained
def filling_the_disk(target: Target) -> bool:
    """Files without end, in every writable place together: one limit for all."""
    written = []
    try:
        for place in ("/tmp", "/dev/shm", "/home/agent", "/var/tmp"):
            path = f"{place}/fill"
            written.append(path)
            with open(path, "wb", 0) as file:
                for _ in range(48):
                    file.write(bytes(1 << 20))
    except OSError as error:
        return error.errno == errno.ENOSPC
    finally:
        for path in written:
            if os.path.exists(path):
                os.unlink(path)
    return False


@contained
def open_files_without_end(target: Target) -> bool:
    """Descriptors without end."""
    opened = []
    try:
        for _ in range(100_000):
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        return error.errno == errno.EMFILE
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return False


@contained
def locked_memory(target: Target) -> bool:
    """Memory that cannot be swapped."""
    held = mmap.mmap(-1, 1 << 20)
    address = ctypes.addressof(ctypes.c_char.from_buffer(held))
    return bool(libc.mlock(ctypes.c_void_p(address), 1 << 20) != 0)


@contained
def memory_without_end(target: Target) -> bool:
    """A child that takes all it can: the child dies or is refused, the agent lives."""
    code = "held = []\nfor number in range(4000):\n    held.append(bytearray(b'x' * (1 << 20)))\nprint('took it all')"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return child.returncode != 0 and "took it all" not in child.stdout
