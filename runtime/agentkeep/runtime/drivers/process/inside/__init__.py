"""What runs inside the sandbox: the fork server of an agent version and the birth of a session's process.

Standard library only (it runs under the agent's interpreter, before and without its packages), importing nothing of the
platform. The folder is mounted read-only as the package `_agentkeep_sandbox`, a name no agent will have.
"""
