"""A way out of sessions, to the hosts that an operator's rules name and to nothing else: a proxy for TLS (`CONNECT`) at
the session endpoint."""
