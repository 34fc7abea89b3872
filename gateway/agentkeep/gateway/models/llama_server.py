"""The local model's process: llama.cpp's server on a Unix socket, alive as long as its standard input is open.

Apart from the platform's process because a defect in native code ends the process it happens in, and because a model
that computes would otherwise take the interpreter's and the machine's time from everything else.

Reads one line of JSON from standard input (socket, model, api_key, context, threads), writes `ready` when it serves,
and ends when the input does: with the platform, however that ends.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

NICENESS = 5


def main() -> None:
    settings = json.loads(sys.stdin.buffer.readline())
    socket = Path(settings["socket"])
    os.umask(0o077)
    os.nice(NICENESS)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # llama.cpp prints to standard output as it likes

    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = settings["model"]
    parameters.n_ctx = settings["context"]
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = settings["threads"]
    parameters.n_parallel = 1
    parameters.hostnames = [str(socket)]
    parameters.api_keys = [settings["api_key"]]
    parameters.verbosity = -1
    parameters.warmup = False
    parameters.ui = parameters.endpoint_slots = False
    # One user's prompt must not speed up another's: a shared prompt cache would tell them of each other.
    parameters.cache_prompt = parameters.cache_idle_slots = False
    parameters.cache_ram_mib = 0
    _server = xllamacpp.Server(parameters)  # serves from threads of its own while it exists
    try:
        print("ready", file=answers, flush=True)
        sys.stdin.buffer.read()
    finally:
        with suppress(OSError):
            socket.unlink()
            socket.parent.rmdir()
        os._exit(0)  # without native destructors, which wait for requests under way


if __name__ == "__main__":
    main()
