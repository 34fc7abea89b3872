"""`agentkeep memory`: forget a user, make old records fewer, see what records are made of and what failed to be."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape

from agentkeep.cli.deployment import Deployment
from agentkeep.cli.options import DEFAULT_DATA_DIR, DataDir
from agentkeep.cli.output import AsJson, CommandError, console, printable, progress, show, table

__all__ = ["app"]

#: Seconds an erasure or compaction is waited for.
PATIENCE = 3600
PAUSE = 0.5

app = typer.Typer(
    help="Forget a user; make old records fewer; see what records are made of.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
MemoryName = Annotated[str, typer.Argument(help="The memory's name or id.")]


@app.command()
def erase(
    actor: Annotated[str, typer.Argument(help="The user's id, as memory knows it: the token's subject.")],
    memory: Annotated[str | None, typer.Option(help="In this memory alone; default: in all.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Erase all that memory has of a user: events, records, and what is being made of them. There is no way back."""
    deployment = Deployment(data_dir)
    memory_id = _id(deployment, memory) if memory is not None else None
    where = f"memory {memory_id}" if memory_id is not None else "all memories"
    living = [
        one["sessionId"]
        for one in json.loads(deployment.request("GET", "/sessions"))["sessions"]
        if one["user"] == actor
    ]
    if not yes:
        if living:
            note = f"{len(living)} sessions of this user's live, and may write again: `agentkeep stop` ends one."
            console.print(f"[yellow]{escape(note)}[/]", highlight=False)
        typer.confirm(f"Erase what {where} has of {printable(repr(actor))}, for good?", abort=True, err=True)
    body = {"actorId": actor} | ({"memoryId": memory_id} if memory_id is not None else {})
    report = _until_ended(deployment, _post(deployment, "/memory/erasures", body), f"erasing from {where}", as_json)
    _show_erasure(report | {"livingSessions": living}, as_json)


@app.command()
def compact(
    memory: MemoryName,
    older_than: Annotated[
        str | None, typer.Option(help="Records of this age, e.g. 90d; default: the deployment's.")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="In this namespace, and all beneath it.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Records of this strategy (its id).")] = None,
    actor: Annotated[str | None, typer.Option(help="Of this user alone.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model that merges them; default: the deployment's; 'none': duplicates alone."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing, ask no model; say what would be.")
    ] = False,
    most_questions: Annotated[int, typer.Option(min=0, max=10_000, help="Ask the model so often at most.")] = 200,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Merge a memory's old records into fewer, user by user; what each was made of stays known."""
    deployment = Deployment(data_dir)
    wanted: dict[str, Any] = {
        "memoryId": _id(deployment, memory),
        "olderThanDays": _days(older_than) if older_than is not None else None,
        "namespace": namespace,
        "strategyId": strategy,
        "actorId": actor,
        "model": "" if model == "none" else model,
        "dryRun": dry_run,
        "mostQuestions": most_questions,
    }
    body = {name: value for name, value in wanted.items() if value is not None}
    report = _post(deployment, "/memory/compactions", body)
    _show_compaction(_until_ended(deployment, report, "compacting", as_json), as_json)


@app.command()
def report(
    report_id: Annotated[str, typer.Argument(metavar="REPORT", help="Of an erasure or a compaction.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show what an erasure or a compaction did, as far as it has come."""
    found = json.loads(Deployment(data_dir).request("GET", f"/memory/reports/{quote(report_id, safe='')}"))
    (_show_erasure if found["kind"] == "erasure" else _show_compaction)(found, as_json)


@app.command()
def reports(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The latest so many.")] = 50,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """List erasures and compactions, the latest first."""
    answer = json.loads(Deployment(data_dir).request("GET", f"/memory/reports?limit={limit}"))
    columns = {"id": "REPORT", "status": "STATE", "requestedAt": "ASKED FOR", "requestedBy": "BY"}
    table(answer, as_json, columns, answer["reports"], "There is no report.")


@app.command()
def record(
    memory: MemoryName,
    record_id: Annotated[str, typer.Argument(metavar="RECORD", help="The record's id.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show a record of a user's and what it was made of; needs a key that acts for users, and is put on record."""
    deployment = Deployment(data_dir)
    path = f"/memory/records/{quote(_id(deployment, memory), safe='')}/{quote(record_id, safe='')}"
    found = json.loads(deployment.request("GET", path))
    made = {
        None: "an agent or an application wrote it",
        "verbatim": "word for word what was said",
    }.get(found["method"], f"by {found['method']}")
    whose = f"of {found['actorId']}" if found["actorId"] is not None else "no user's"
    lines = [
        printable(found["text"]),
        f"{whose}, in {found['namespace'] or 'no namespace'}; {made}",
        f"made {found['createdAt']}" + (f", gone {found['expiresAt']}" if found["expiresAt"] else ""),
    ]
    for source in found["sources"]:
        if source["memoryRecordId"] is not None:
            lines.append(f"  from record {source['memoryRecordId']}")
        else:
            lines.append(f"  from event {source['eventId']} of session {source['sessionId']}")
    show(found, as_json, *(escape(printable(line)) for line in lines))


@app.command()
def jobs(memory: MemoryName, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """List extractions that failed and can be run again (StartMemoryExtractionJob)."""
    deployment = Deployment(data_dir)
    found = list(_jobs(deployment, _id(deployment, memory)))
    columns = {"jobID": "JOB", "status": "STATE", "failureReason": "BECAUSE", "actorId": "USER", "sessionId": "SESSION"}
    table({"jobs": found}, as_json, columns, found, "No extraction failed.")


def _jobs(deployment: Deployment, memory_id: str) -> Iterator[dict[str, Any]]:
    token: dict[str, str] = {}
    while True:
        page = deployment.data.list_memory_extraction_jobs(memoryId=memory_id, **token)
        yield from page["jobs"]
        if "nextToken" not in page:
            return
        token = {"nextToken": page["nextToken"]}


def _post(deployment: Deployment, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(deployment.request("POST", path, json.dumps(body).encode()))
    return answer


def _until_ended(deployment: Deployment, report: dict[str, Any], doing: str, as_json: bool) -> dict[str, Any]:
    if report["status"] == "ENDED":
        return report
    deadline = time.monotonic() + PATIENCE
    with progress(doing, as_json):
        while report["status"] != "ENDED":
            if time.monotonic() > deadline:
                raise CommandError(
                    "It is not done yet, and goes on by itself.",
                    f"`agentkeep memory report {report['id']}` tells more.",
                )
            time.sleep(PAUSE)
            report = json.loads(deployment.request("GET", f"/memory/reports/{quote(report['id'], safe='')}"))
    return report


def _show_erasure(report: Mapping[str, Any], as_json: bool) -> None:
    state = "has ended" if report["status"] == "ENDED" else "is under way"
    lines = [f"Erasure of {report['actorId']!r} {state}; asked for by {report['requestedBy']}."]
    for memory, counts in report["removed"].items():
        told = ", ".join(f"{number} {kind}" for kind, number in counts.items()) or "nothing was there"
        lines.append(f"  {memory}: {told}")
    if report["attempts"] > 1:
        lines.append("It was interrupted: what was removed just before may not be counted.")
    if report["foundAfter"] == {}:
        files = {None: "", False: "; nor are there bytes of its records in the search store's files"}
        lines.append("A search afterwards found nothing" + files.get(report["inFiles"], "") + ".")
    if report["inFiles"]:
        lines.append("Bytes of records are still in the search store's files.")
    for memory, ids in report["nobodys"].items():
        lines.append(f"{memory} has {len(ids)} records of no user's that name this one in their namespace; they stay:")
        lines += [f"  {one}" for one in ids]
    for memory, number in report["beneath"].items():
        lines.append(f"{memory} has {number} records of other users beneath this one's namespaces; they stay.")
    for session in report.get("livingSessions", ()):
        lines.append(f"A session of this user's lives, and may write again: agentkeep stop {session}")
    lines += ["Not removed, for other parts of the platform keep it:", *(f"  {one}" for one in report["notRemoved"])]
    lines.append(f"agentkeep memory report {report['id']} shows this again.")
    show(report, as_json, *(escape(printable(line)) for line in lines))


def _show_compaction(report: Mapping[str, Any], as_json: bool) -> None:
    wanted = report["wanted"]
    dry, ended = wanted["dryRun"], report["status"] == "ENDED"
    by = f"by {wanted['modelId']}" if wanted["modelId"] else "by rules: duplicates alone"
    lines = [
        f"{'Dry run of a compaction' if dry else 'Compaction'} of {wanted['memoryId']}, {by}, "
        f"{'has ended' if ended else 'is under way'}.",
        f"  {report['seen']} records of {report['actors']} users are older than {wanted['olderThanDays']} days.",
    ]
    if dry:
        asked = f"  {report['merged']} duplicates would go"
        if wanted["modelId"]:
            asked += (
                f"; {report['questions']} questions, of about {report['inputTokens']} tokens, would go to the model"
            )
        lines.append(asked + ".")
    else:
        lines.append(f"  {report['merged']} of them are gone, for which {report['written']} stand now.")
    if report["questions"] and not dry:
        tokens = f"about {report['inputTokens']} tokens in, {report['outputTokens']} out"
        lines.append(f"  The model was asked {report['questions']} times: {tokens}.")
    if report["changed"]:
        lines.append(f"  {report['changed']} merges were given up, for their records changed meanwhile.")
    if report["failures"]:
        reasons = ", ".join(sorted({one["reason"] for one in report["failed"]}))
        lines.append(f"  {report['failures']} answers were of no use ({reasons}); those records stay as they were.")
    if ended and not report["complete"]:
        lines.append("  It stopped at one of its limits; the same command goes on.")
    lines.append(f"agentkeep memory report {report['id']} shows this again; --json has every merge.")
    show(report, as_json, *(escape(printable(line)) for line in lines))


def _id(deployment: Deployment, name: str) -> str:
    names: list[str] = []
    for page in deployment.control.get_paginator("list_memories").paginate():
        for memory in page["memories"]:
            if name in (memory["id"], memory["arn"], memory["id"].rpartition("-")[0]):
                return str(memory["id"])
            names.append(memory["id"])
    raise CommandError(f"There is no memory {name!r}. There are: {', '.join(names) or 'none yet'}.")


def _days(text: str) -> int:
    number = text.strip().removesuffix("d")
    if not number.isascii() or not number.isdigit():
        raise CommandError(f"--older-than {text!r} is no number of days, such as 90d.")
    return int(number)
