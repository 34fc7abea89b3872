"""An agent of the standard library alone, so light that what is seen is the platform's share. Payloads are JSON:

{}                          a small answer, with this process's id and how many calls it has had
{"size": n}                 n bytes of answer
{"events": n, "pause": s}   n server-sent events, s seconds apart, each with the monotonic time it was sent at
{"crash": true}             half an answer, then the process ends without a word
{"exit": true}              an answer, and the process ends
{"hang": s}                 an answer after s seconds
"""

import asyncio
import json
import os
import time
from typing import Any

INSTANCE = os.urandom(6).hex()
calls = 0


class Agent(asyncio.Protocol):
    transport: Any

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.got = b""
        self.length = -1
        self.task: Any = None

    def data_received(self, data: bytes) -> None:
        self.got += data
        if self.length < 0:
            head, found, rest = self.got.partition(b"\r\n\r\n")
            if not found:
                return
            lower = head.lower()
            if lower.startswith(b"get /ping"):
                self.got = b""
                self.answer(b'{"status":"Healthy"}')
                return
            self.length = int(lower.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0] or 0)
            self.got = rest
        if len(self.got) >= self.length:
            body, self.got, self.length = self.got, b"", -1
            self.invoked(body)

    def invoked(self, body: bytes) -> None:
        global calls
        calls += 1
        wanted = json.loads(body[: body.find(b"}") + 1] or b"{}") if len(body) < 4096 else {}
        if "events" in wanted:
            self.task = asyncio.create_task(self.events(wanted["events"], wanted.get("pause", 0.0)))
        elif "hang" in wanted:
            asyncio.get_running_loop().call_later(wanted["hang"], self.answer, b"{}")
        elif "crash" in wanted:
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf of")
            asyncio.get_running_loop().call_later(0.02, os._exit, 3)
        else:
            said = b'{"instance":"%b","call":%d,"got":%d}' % (INSTANCE.encode(), calls, len(body))
            self.answer(said + b" " * (wanted.get("size", 0) - len(said)))
            if "exit" in wanted:
                asyncio.get_running_loop().call_later(0.02, os._exit, 0)

    def answer(self, body: bytes) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )

    async def events(self, count: int, pause: float) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(count):
            await asyncio.sleep(pause)
            event = b"data: %d %b\n\n" % (time.monotonic_ns(), b"t" * 40)
            self.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self.transport.write(b"0\r\n\r\n")

    def connection_lost(self, exc: Any) -> None:
        if self.task is not None:
            self.task.cancel()


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(
        Agent, "0.0.0.0", int(os.environ.get("LIGHT_AGENT_PORT", "8080")), backlog=1024
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
