"""`make run`: the platform from nothing to a conversation, as its users would do it, with each answer checked.

It uses the `agentkeep` command and unmodified boto3, nothing else. Exit status 0 only if every turn was right.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

FOLDER = Path(__file__).parent
COMMAND = Path(sys.executable).with_name("agentkeep")
NAME = "support_agent"
SERVICES = ("BEDROCK_AGENTCORE", "BEDROCK_AGENTCORE_CONTROL", "BEDROCK_RUNTIME")


@dataclass(frozen=True)
class Turn:
    """What a user says, and what the answer must hold for the turn to be right."""

    says: str
    expects: str


CONVERSATIONS = {
    "alice": (
        Turn("Hello, my name is Alice and my order is A-1001.", "A-1001"),
        Turn("What is my order number, and what is my name?", "A-1001"),
    ),
    "bob": (
        Turn("Hi! Call me Bob. It is about order B-2002.", "B-2002"),
        Turn("Please remind me: what was my order number?", "B-2002"),
    ),
}
#: In a session of its own nothing of the conversation before is known.
AFRESH = Turn("What is my order number?", "not told me")


class Demo:
    def __init__(self, data_dir: Path, port: int) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self.wrong = 0
        self.started = False

    def agentkeep(self, *arguments: str) -> Any:
        """The command's answer. Raises CalledProcessError with what it said."""
        done = subprocess.run([COMMAND, *arguments, "--data-dir", self.data_dir, "--json"], capture_output=True)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, ["agentkeep", *arguments], done.stdout, done.stderr)
        return json.loads(done.stdout)

    def run(self) -> None:
        heading("Start the platform")
        began = time.monotonic()
        running = self.start()
        print(f"  {running['endpoint']}, ready in {time.monotonic() - began:.1f} s, data in {self.data_dir}")

        heading(f"Deploy examples/{NAME}")
        began = time.monotonic()
        deployed = self.agentkeep("deploy", str(FOLDER / NAME), "--memory", NAME)
        print(f"  {deployed['agentRuntimeArn']}")
        print(f"  version {deployed['agentRuntimeVersion']}, READY in {time.monotonic() - began:.1f} s")

        sessions = {user: self.converse(user, turns) for user, turns in CONVERSATIONS.items()}
        self.converse("alice", (AFRESH,))
        self.intrude(sessions["alice"])
        self.show_memory(deployed["memoryId"], sessions)
        self.show_use(deployed["agentRuntimeId"], sessions)

    def start(self) -> Any:
        state = self.data_dir / "platform.json"
        if state.exists():
            try:
                self.agentkeep("sessions")
                print("  it is running already")
                return json.loads(state.read_text())
            except subprocess.CalledProcessError:
                pass
        running = self.agentkeep("up", "--detach", "--port", str(self.port))
        self.started = True
        return running

    def converse(self, user: str, turns: tuple[Turn, ...]) -> str:
        session = str(uuid.uuid4())
        heading(f"{user.capitalize()} talks to the agent, in session {session}")
        for turn in turns:
            began = time.monotonic()
            answer = self.agentkeep("invoke", NAME, turn.says, "--user", user, "--session-id", session)["answer"]
            right = turn.expects in answer
            self.wrong += not right
            print(f"  {user}: {turn.says}")
            print(f"  agent: {answer}   [{time.monotonic() - began:.2f} s]")
            if not right:
                print(f"  WRONG: the answer should hold {turn.expects!r}")
        return session

    def intrude(self, session: str) -> None:
        heading("Bob tries to speak in Alice's session")
        try:
            self.agentkeep("invoke", NAME, "What is my order number?", "--user", "bob", "--session-id", session)
        except subprocess.CalledProcessError as refused:
            reason = json.loads(refused.stderr)["error"]
            print(f"  refused: {reason}")
            if "403" in reason:
                return
        self.wrong += 1
        print("  WRONG: he should have been refused with 403")

    def show_memory(self, memory: str, sessions: dict[str, str]) -> None:
        heading("What the memory holds")
        client = self.client("bedrock-agentcore")
        for user, session in sessions.items():
            events = [
                event
                for page in client.get_paginator("list_events").paginate(
                    memoryId=memory, actorId=user, sessionId=session
                )
                for event in page["events"]
            ]
            others = [order for other, order in (("alice", "A-1001"), ("bob", "B-2002")) if other != user]
            leaked = any(order in json.dumps(events, default=str) for order in others)
            self.wrong += leaked
            print(
                f"  {user}: {len(events)} events in session {session}" + (" WRONG: another user's!" if leaked else "")
            )

    def show_use(self, runtime: str, sessions: dict[str, str]) -> None:
        heading("What it used")
        for user, session in sessions.items():
            totals = self.agentkeep("usage", session)["totals"]
            print(f"  {user}: {totals['calls']} model calls, {totals['input_tokens']} tokens in, "
                  f"{totals['output_tokens']} out")  # fmt: skip
            self.wrong += totals["calls"] != len(CONVERSATIONS[user])

    def client(self, service: str) -> Any:
        variables = self.agentkeep("env")
        return boto3.client(
            service,
            endpoint_url=variables["AWS_ENDPOINT_URL_BEDROCK_AGENTCORE"],
            region_name=variables["AWS_REGION"],
            aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        )

    def stop(self) -> None:
        if self.started:
            self.agentkeep("down")


def heading(text: str) -> None:
    print(f"\n▸ {text}", flush=True)


def three_lines(demo: Demo) -> None:
    variables = demo.agentkeep("env")
    endpoint, region = variables["AWS_ENDPOINT_URL_BEDROCK_AGENTCORE"], variables["AWS_REGION"]
    heading("The platform stays up. Point boto3 at it:")
    print("  export " + " ".join(f"AWS_ENDPOINT_URL_{service}={endpoint}" for service in SERVICES))
    print(f"  export AWS_REGION={region} AWS_DEFAULT_REGION={region}")
    print(f"  export AWS_SHARED_CREDENTIALS_FILE={demo.data_dir / 'credentials'} AWS_PROFILE=agentkeep")
    print(f'\nTalk on:   .venv/bin/agentkeep invoke {NAME} "Hello" --user alice --data-dir {demo.data_dir}')
    print(f"Stop it:   .venv/bin/agentkeep down --data-dir {demo.data_dir}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--port", type=int, default=4780)
    parser.add_argument("--stay-up", action="store_true", help="leave the platform running")
    options = parser.parse_args()
    demo = Demo(options.data_dir, options.port)
    try:
        demo.run()
    except subprocess.CalledProcessError as failed:
        print(f"\n{' '.join(map(str, failed.cmd))} failed: {failed.stderr.decode(errors='replace')}", file=sys.stderr)
        demo.wrong += 1
    if options.stay_up and not demo.wrong:
        three_lines(demo)
        return 0
    demo.stop()
    print(f"\n{'Every turn was right.' if not demo.wrong else f'{demo.wrong} things were wrong.'}")
    return 1 if demo.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
