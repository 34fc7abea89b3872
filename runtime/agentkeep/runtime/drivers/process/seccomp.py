"""The system calls an agent may make: an allow list, and what is refused of the arguments of four of them.

Two programs are loaded one over the other (the kernel takes the stricter answer):

1. which calls: those listed are allowed; those known and refused fail with EPERM; all others, and so every call that
   future kernels may add, fail with ENOSYS, which is what an older kernel would say, so that libraries fall back.
2. which arguments: no new namespaces by `clone`, no socket families but Unix, IP and netlink, no typing into terminals.

Built on the platform's side by libseccomp and sent to the session as bytes. Calls of other ABIs (32-bit, x32) end the
process.
"""

from __future__ import annotations

import errno
import functools
import socket
import tempfile
from typing import Any

from agentkeep.core.errors import SandboxUnavailable

__all__ = ["filters"]

ALLOWED: dict[str, str] = {
    "files and folders": """
        read write open openat openat2 close close_range creat stat fstat lstat newfstatat statx lseek pread64 pwrite64
        readv writev preadv pwritev preadv2 pwritev2 access faccessat faccessat2 pipe pipe2 dup dup2 dup3 fcntl flock
        fsync fdatasync sync_file_range truncate ftruncate getdents getdents64 getcwd chdir fchdir rename renameat
        renameat2 mkdir mkdirat rmdir link linkat unlink unlinkat symlink symlinkat readlink readlinkat chmod fchmod
        fchmodat fchmodat2 chown fchown lchown fchownat umask utime utimes utimensat futimesat statfs fstatfs sendfile
        splice tee vmsplice copy_file_range fallocate fadvise64 readahead mknod mknodat ioctl memfd_create
        getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr removexattr
        lremovexattr fremovexattr inotify_init inotify_init1 inotify_add_watch inotify_rm_watch""",
    "waiting": """
        poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd
        eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime futex futex_waitv futex_wait
        futex_wake futex_requeue nanosleep clock_nanosleep pause restart_syscall""",
    "memory": """
        mmap mprotect munmap mremap msync mincore madvise brk mlock mlock2 munlock mlockall munlockall pkey_alloc
        pkey_free pkey_mprotect get_mempolicy membarrier""",
    "processes and threads": """
        clone fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill pidfd_open pidfd_send_signal
        getpid getppid gettid getpgid getpgrp setpgid getsid setsid set_tid_address set_robust_list get_robust_list
        rseq arch_prctl prctl sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam
        sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval
        sched_getattr sched_setattr getpriority setpriority ioprio_get ioprio_set getrusage times getrlimit setrlimit
        prlimit64 capget seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self""",
    "signals and timers": """
        rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend rt_sigqueueinfo
        rt_tgsigqueueinfo sigaltstack alarm getitimer setitimer timer_create timer_settime timer_gettime
        timer_getoverrun timer_delete clock_gettime clock_getres gettimeofday time""",
    "identity and machine": """
        getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid setresuid setresgid
        setgroups setfsuid setfsgid uname sysinfo getrandom getcpu""",
    "network": """
        socket socketpair bind listen accept accept4 connect getsockname getpeername sendto recvfrom sendmsg recvmsg
        sendmmsg recvmmsg setsockopt getsockopt shutdown""",
    "communication inside the session (its IPC namespace is its own)": """
        shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink
        mq_timedsend mq_timedreceive mq_notify mq_getsetattr""",
}

# Refused by name, so that programs which try are told "not permitted". The list need not be complete.
REFUSED = """
    mount umount2 pivot_root chroot unshare setns mount_setattr move_mount open_tree fsopen fsmount fsconfig fspick
    ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp keyctl add_key request_key bpf
    perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register init_module finit_module delete_module
    kexec_load kexec_file_load open_by_handle_at name_to_handle_at quotactl quotactl_fd swapon swapoff reboot acct
    settimeofday clock_settime adjtimex clock_adjtime syslog sethostname setdomainname iopl ioperm vhangup
    fanotify_init mbind set_mempolicy migrate_pages move_pages personality modify_ldt capset"""

NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW* flag
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)


@functools.cache
def filters() -> tuple[bytes, ...]:
    """The programs for this machine's architecture, in the order to load them."""
    try:
        import pyseccomp  # loads libseccomp: its absence must not break imports of this module
    except (ImportError, OSError, RuntimeError) as error:
        raise SandboxUnavailable(
            f"libseccomp cannot be loaded ({error}); install it: apt install libseccomp2"
        ) from error
    # The argument filter first: the call filter, once loaded, would have to allow loading another.
    return _arguments(pyseccomp), _calls(pyseccomp)


def _calls(library: Any) -> bytes:
    program = library.SyscallFilter(library.ERRNO(errno.ENOSYS))
    for names, action in ((" ".join(ALLOWED.values()), library.ALLOW), (REFUSED, library.ERRNO(errno.EPERM))):
        for name in names.split():
            number = library.resolve_syscall(library.Arch.NATIVE, name)
            if number >= 0:  # else this architecture, or this libseccomp, does not know it
                program.add_rule(action, number)
    return _export(program)


def _arguments(library: Any) -> bytes:
    program = library.SyscallFilter(library.ALLOW)
    # clone3 has its flags behind a pointer; told that it does not exist, libc uses clone.
    number = library.resolve_syscall(library.Arch.NATIVE, "clone3")
    if number >= 0:
        program.add_rule(library.ERRNO(errno.ENOSYS), number)
    for bit in range(32):
        if NEW_NAMESPACES >> bit & 1:
            condition = library.Arg(0, library.MASKED_EQ, 1 << bit, 1 << bit)
            program.add_rule(library.ERRNO(errno.EPERM), "clone", condition)
    # vsock, among others, is not tied to the network namespace. The kernel looks at the lower half of the register.
    low = 0xFFFFFFFF
    for family in range(32):
        if family not in FAMILIES:
            condition = library.Arg(0, library.MASKED_EQ, low, family)
            program.add_rule(library.ERRNO(errno.EAFNOSUPPORT), "socket", condition)
    for bit in range(5, 32):  # every family from 32 up has one of these
        condition = library.Arg(0, library.MASKED_EQ, 1 << bit, 1 << bit)
        program.add_rule(library.ERRNO(errno.EAFNOSUPPORT), "socket", condition)
    for request in (TIOCSTI, TIOCLINUX):
        program.add_rule(library.ERRNO(errno.EPERM), "ioctl", library.Arg(1, library.MASKED_EQ, low, request))
    return _export(program)


def _export(program: Any) -> bytes:
    with tempfile.TemporaryFile() as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()
