"""The requirements, and since which part of the roadmap each is shown by tests.

Tests cite ids in their docstrings. `tests/meta/test_requirements.py` fails for a requirement that is due and cited by
no test, and for a test that cites an id unknown here.
"""

from __future__ import annotations

#: The part that is finished; requirements of later parts may be cited already, but need not be.
PART = 5

#: id -> (what, the part that shows it)
REQUIREMENTS: dict[str, tuple[str, int]] = {
    "EXE-1": ("an environment of its own for every session", 1),
    "EXE-2": ("any agent that honours the container contract", 1),
    "EXE-3": ("idle timeout, maximum lifetime, explicit stop", 1),
    "EXE-4": ("versions and endpoints; running sessions keep theirs", 1),
    "EXE-5": ("leakage is tested, ten and more sessions at once", 1),
    "EXE-6": ("losing a process loses no acknowledged data", 1),
    "EXE-7": ("the platform's own share of a task is milliseconds", 3),
    "EXE-8": ("nothing runs when nothing is asked", 1),
    "GOV-1": ("tools are MCP tools, seen only where policy allows", 2),
    "GOV-2": ("schema, policy, limits, audit level of each tool", 2),
    "GOV-3": ("rate limits per tool and agent", 2),
    "GOV-4": ("every call authenticated, authorised, as the user", 2),
    "GOV-5": ("human approval of high-impact tools", 6),
    "GOV-6": ("review without reading code", 6),
    "GOV-7": ("every high-risk call is in the audit trail", 2),
    "GOV-8": ("loops that do not converge are stopped", 6),
    "MEM-1": ("short-term memory of a session", 1),
    "MEM-2": ("no user's memory in another user's session", 1),
    "MEM-3": ("persistence is explicit", 4),
    "MEM-4": ("expiry, compaction, erasure", 4),
    "MEM-5": ("an attempt to reach another user's memory is refused and told", 1),
    "MEM-6": ("retrieval in time; encrypted at rest", 4),
    "IDN-1": ("the user's token becomes STS credentials", 5),
    "IDN-2": ("no user, no data operation", 1),
    "IDN-3": ("outbound credentials from the vault", 5),
    "IDN-4": ("credentials of one session, short-lived, dead when it ends", 1),
    "IDN-5": ("SigV4 or JWT; nobody unauthenticated", 1),
    "OBS-1": ("every step traced without code in the agent", 2),
    "OBS-2": ("cost per session", 2),
    "OBS-3": ("token budget per session", 2),
    "OBS-4": ("account budget", 7),
    "OBS-5": ("an auditor can rebuild what led to an action", 8),
    "OBS-6": ("smaller models for simple tasks", 7),
    "GRD-1": ("guardrails on every input and output", 7),
    "GRD-2": ("guardrails in time", 7),
    "BCK-1": ("a backend switch per plane", 9),
    "BCK-2": ("failover and failback without loss", 9),
    "BCK-3": ("a second region", 9),
    "OPS-1": ("infrastructure as code", 10),
    "OPS-2": ("runbooks", 10),
    "OPS-3": ("a rollout path with gates", 10),
}
