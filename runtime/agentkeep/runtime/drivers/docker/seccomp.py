"""The system calls a container may make: those of the process driver's sessions, in the engine's notation.

Stricter than the engine's default profile, which lets, among others, vsock pass: that is not tied to a network
namespace, and so leads past the session's network to the hypervisor. OCI runtimes with a kernel of their own do not
need it and ignore it. Source: moby's profiles/seccomp, the OCI runtime specification.
"""

from __future__ import annotations

import errno
import functools
import json
from typing import Any, Final

from agentkeep.runtime.drivers.process.seccomp import ALLOWED, FAMILIES, NEW_NAMESPACES, REFUSED

__all__ = ["profile"]

_LOW: Final = 0xFFFFFFFF  # of a 64-bit register, the half the kernel looks at


@functools.cache
def profile() -> str:
    """For the security option `seccomp=`."""
    plain = sorted(set(" ".join(ALLOWED.values()).split()) - {"clone", "socket"})
    syscalls = [
        _allow(plain),
        _allow(["clone"], value=NEW_NAMESPACES, valueTwo=0),  # with none of these flags
        *(_allow(["socket"], value=_LOW, valueTwo=int(family)) for family in FAMILIES),
        _refuse(REFUSED.split(), errno.EPERM),
        _refuse(["clone3"], errno.ENOSYS),  # its flags lie behind a pointer; told so, libc uses clone
    ]
    architectures = [{"architecture": f"SCMP_ARCH_{name}", "subArchitectures": []} for name in ("X86_64", "AARCH64")]
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": errno.ENOSYS,
            "archMap": architectures,
            "syscalls": syscalls,
        }
    )


def _allow(names: list[str], **masked: int) -> dict[str, Any]:
    arguments = [{"index": 0, "op": "SCMP_CMP_MASKED_EQ", **masked}] if masked else []
    return {"names": names, "action": "SCMP_ACT_ALLOW", "args": arguments}


def _refuse(names: list[str], code: int) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": code, "args": []}
