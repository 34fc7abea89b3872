# ruff: noqa: S108 -- places that every session has are what this is about.
"""Using things up: these must meet a limit, and the session survives."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
import time

from .attack import Target, contained
from .kernel import libc


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
