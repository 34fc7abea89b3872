"""The ports of core/ports.py over HTTP: `POST /ports/<port>/<method>` between services, arguments and results as JSON.

`catalogue` says which ports there are, who serves them, who may call what. `description` derives the wire from a port's
type hints; `errors` carries the platform's errors across. `client` and `server` are the two ends, `caches` answers the
look-ups that must not wait.
"""
