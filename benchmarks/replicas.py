"""A warm invocation behind the edge: through one, two and four replicas of the runtime service, beside nginx alone.

The same light agent is asked in five ways, in turn, in one run: directly; through nginx as a plain proxy; through the
embedded platform; and through nginx as the edge of five services, of which the runtime service has one, two or four
replicas. With several, a call arrives at its session's owner only by chance (nginx takes the next replica each time),
and is handed on by the others: so many hops more are in the figures. Times in microseconds; `cpu` is of everything
between client and agent together. All processes share this machine: replicas add no processors here, so a throughput
that does not grow says nothing against them; the CPU of a call, and what it adds at the median, say what they cost.

    python benchmarks/replicas.py [--seconds 0.4] [--rounds 5]

Aim: less than 500 us added at the median embedded, less than 1000 us behind the edge.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import uvloop
from _history import keep
from _nginx import Nginx
from _platform import LIGHT_AGENT, Operator, Platform
from invocation import Target, measure
from kill_replicas import free_port, standing

BODY = b'{"size":232}' + b" " * 300
MOST = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.4, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentkeep-replicas-")))
        port = free_port()
        agent = subprocess.Popen([sys.executable, LIGHT_AGENT], env={**os.environ, "LIGHT_AGENT_PORT": str(port)})
        stack.callback(agent.wait, 10)
        stack.callback(agent.terminate)
        plain = stack.enter_context(Nginx(folder / "plain", [port]))
        embedded = stack.enter_context(Platform(folder / "embedded"))
        services = folder / "services"
        services.mkdir()
        stand = stack.enter_context(standing(services, MOST))
        of_services = Operator(stand.url, stand.credentials).deploy()
        of_embedded, host = embedded.deploy(), embedded.url.partition("//")[2]
        credentials = embedded.credentials
        targets = {
            "direct": Target(port, [agent.pid], host, of_embedded, credentials),
            "nginx": Target(plain.port, [plain.worker], host, of_embedded, credentials),
            "embedded": Target(embedded.port, [embedded.pid], host, of_embedded, credentials),
        }
        for count in (1, 2, MOST):
            replicas = stand.replicas[:count]
            edge = stack.enter_context(Nginx(folder / f"edge-{count}", [one.port for one in replicas]))
            pids = [edge.worker, *(one.process.pid for one in replicas if one.process is not None)]
            host, name = f"127.0.0.1:{edge.port}", f"of-{count}"
            targets[f"{count} replicas"] = Target(edge.port, pids, host, of_services, stand.credentials, name)
        figures = uvloop.run(measure(targets, arguments.seconds, arguments.rounds, BODY))
    for name, figure in figures.items():
        print(name)
        for of, values in figure.items():
            print(f"  {of:12}", values)
    keep("replicas", figures)


if __name__ == "__main__":
    main()
