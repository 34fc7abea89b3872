"""Converse said in chat completions, and back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from botocore.session import Session
from botocore.validate import ParamValidator
from model_stand_ins import says

from agentkeep.core.errors import ModelErrorException, ModelStreamErrorException, ValidationException
from agentkeep.gateway.models.chat_completions import (
    Dialect,
    request_body,
    response_document,
    stream_events,
    tokens_of,
)
from agentkeep.gateway.models.provider import Document, TokenCounts

DIALECT = Dialect("openai")
MODEL = Session().get_service_model("bedrock-runtime")
WEATHER = {"toolSpec": {"name": "weather", "description": "of a city", "inputSchema": {"json": {"type": "object"}}}}


def body(dialect: Dialect = DIALECT, **request: Any) -> Document:
    request.setdefault("messages", [says("Hi")])
    shape = MODEL.operation_model("Converse").input_shape
    errors = ParamValidator().validate({"modelId": "m", **request}, shape).generate_report()
    assert not errors  # what the tests send is what a client could
    return request_body("gpt", request, dialect, stream=False)


def test_a_conversation_with_tools() -> None:
    messages = [
        {"role": "user", "content": [{"text": "Weather"}, {"text": "in Rome?"}, {"cachePoint": {"type": "default"}}]},
        {
            "role": "assistant",
            "content": [
                {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}},
                {"text": "Let me see."},
                {"toolUse": {"toolUseId": "t1", "name": "weather", "input": {"city": "Rome"}}},
                {"toolUse": {"toolUseId": "t2", "name": "weather", "input": {}}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"text": "and?"},
                {"toolResult": {"toolUseId": "t1", "content": [{"json": {"celsius": 20}}, {"text": "sunny"}]}},
                {"toolResult": {"toolUseId": "t2", "content": [{"text": "no city"}], "status": "error"}},
            ],
        },
    ]
    system = [{"text": "Be brief."}, {"guardContent": {"text": {"text": "Be kind."}}}]
    sent = body(messages=messages, system=system, toolConfig={"tools": [WEATHER]})
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Weather\nin Rome?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
                {"id": "t2", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
            ],
        },
        # Results come right behind the calls, as chat completions want it.
        {"role": "tool", "tool_call_id": "t1", "content": '{"celsius": 20}\nsunny'},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no city"},
        {"role": "user", "content": "and?"},
    ]
    assert sent["tools"] == [
        {
            "type": "function",
            "function": {"name": "weather", "description": "of a city", "parameters": {"type": "object"}},
        }
    ]
    assert sent["tool_choice"] == "auto"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"auto": {}}, "auto"),
        ({"any": {}}, "required"),
        ({"tool": {"name": "weather"}}, {"type": "function", "function": {"name": "weather"}}),
    ],
)
def test_tool_choice(choice: Document, expected: object) -> None:
    assert body(toolConfig={"tools": [WEATHER], "toolChoice": choice})["tool_choice"] == expected


def test_inference_parameters() -> None:
    inference = {"maxTokens": 9, "temperature": 0.0, "topP": 0.5, "stopSequences": ["END"]}
    sent = body(inferenceConfig=inference, additionalModelRequestFields={"top_k": 5})
    assert {member: sent[member] for member in sent.keys() - {"messages", "model"}} == {
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 0.5,
        "stop": ["END"],
        "top_k": 5,
    }
    newer = Dialect("openai", max_tokens_member="max_completion_tokens")
    assert body(newer, inferenceConfig={"maxTokens": 9})["max_completion_tokens"] == 9


def test_structured_output() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    text_format = {"type": "json_schema", "structure": {"jsonSchema": {"schema": json.dumps(schema), "name": "x"}}}
    assert body(outputConfig={"textFormat": text_format})["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": schema, "strict": True},
    }


IMAGE = {"image": {"format": "png", "source": {"bytes": b"\x89PNG"}}}


def test_images_where_the_server_takes_them() -> None:
    sent = body(Dialect("openai", images=True), messages=[{"role": "user", "content": [{"text": "What?"}, IMAGE]}])
    assert sent["messages"][0]["content"] == [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
    ]


@pytest.mark.parametrize(
    ("request_members", "named"),
    [
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, r"messages\.1\.content.*image"),
        (
            {"messages": [{"role": "user", "content": [{"document": {"name": "d", "source": {"text": "x"}}}]}]},
            "document",
        ),
        (
            {
                "messages": [
                    says("x"),
                    {"role": "user", "content": [{"toolResult": {"toolUseId": "t", "content": [IMAGE]}}]},
                ]
            },
            r"messages\.2\.content\.toolResult.*image",
        ),
        ({"promptVariables": {"a": {"text": "b"}}}, "promptVariables"),
        ({"additionalModelRequestFields": {"n": 5}}, "additionalModelRequestFields"),
        ({"additionalModelRequestFields": {"model": "dearer"}}, "additionalModelRequestFields"),
        ({"toolConfig": {"tools": [{"systemTool": {"name": "nova_grounding"}}]}}, "systemTool"),
        (
            {
                "outputConfig": {
                    "textFormat": {"type": "json_schema", "structure": {"jsonSchema": {"schema": "{", "name": "x"}}}
                }
            },
            "outputConfig",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(request_members: Document, named: str) -> None:
    with pytest.raises(ValidationException, match=named):
        body(**request_members)


def completion(message: Document, finish_reason: str = "stop", **members: Any) -> Document:
    return {"choices": [{"message": message, "finish_reason": finish_reason}], **members}


def test_an_answer() -> None:
    usage = {"prompt_tokens": 30, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 10}}
    answer = completion({"role": "assistant", "content": "Hello"}, "length", usage=usage)
    assert response_document(answer, 12.4) == {
        "output": {"message": {"role": "assistant", "content": [{"text": "Hello"}]}},
        "stopReason": "max_tokens",
        "usage": {
            "inputTokens": 20,
            "outputTokens": 5,
            "totalTokens": 35,
            "cacheReadInputTokens": 10,
            "cacheWriteInputTokens": 0,
        },
        "metrics": {"latencyMs": 12},
    }
    assert tokens_of(answer) == TokenCounts(20, 5, 10)


@pytest.mark.parametrize("finish_reason", ["tool_calls", "stop"])
def test_an_answer_that_calls_tools(finish_reason: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    document = response_document(completion({"content": None, "tool_calls": [call]}, finish_reason), 1)
    assert document["stopReason"] == "tool_use"
    assert document["output"]["message"]["content"] == [
        {"toolUse": {"toolUseId": "c1", "name": "weather", "input": {"city": "Rome"}}}
    ]


def test_a_call_whose_arguments_are_no_json_is_not_passed_on() -> None:
    call = {"id": "c1", "function": {"name": "weather", "arguments": '{"city": '}}
    document = response_document(completion({"content": "", "tool_calls": [call]}, "tool_calls"), 1)
    assert document["stopReason"] == "malformed_tool_use"
    assert document["output"]["message"]["content"] == [{"text": ""}]


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{}]}, {"choices": "x"}, {"choices": [None]}])
def test_an_answer_that_is_none(answer: Document) -> None:
    with pytest.raises(ModelErrorException):
        response_document(answer, 1)


async def chunks(*deltas: Document, finish: str | None = "stop", **last: Any) -> AsyncIterator[Document]:
    for delta in deltas:
        yield {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {"choices": [{"delta": {}, "finish_reason": finish}]}
    yield {"choices": [], **last}


async def events(source: AsyncIterator[Document]) -> list[Document]:
    return [event async for event in stream_events(source, lambda: 7.2)]


async def test_a_stream_of_text_and_tools() -> None:
    def tool(index: int, arguments: str, **start: Any) -> Document:
        function = {"arguments": arguments, **({"name": start["name"]} if start else {})}
        return {"tool_calls": [{"index": index, "function": function, **({"id": start["id"]} if start else {})}]}

    source = chunks(
        {"role": "assistant", "content": None},
        {"reasoning_content": "hm"},
        {"content": "Let me"},
        {"content": " see."},
        tool(0, "", id="c1", name="weather"),
        tool(0, '{"city":'),
        tool(0, ' "Rome"}'),
        tool(1, "{}", id="c2", name="time"),
        finish="tool_calls",
        usage={"prompt_tokens": 3, "completion_tokens": 4},
    )

    def delta(index: int, **what: Any) -> Document:
        return {"contentBlockDelta": {"delta": what, "contentBlockIndex": index}}

    def start(index: int, id: str, name: str) -> Document:
        return {
            "contentBlockStart": {"start": {"toolUse": {"toolUseId": id, "name": name}}, "contentBlockIndex": index}
        }

    def stop(index: int) -> Document:
        return {"contentBlockStop": {"contentBlockIndex": index}}

    assert await events(source) == [
        {"messageStart": {"role": "assistant"}},
        delta(0, reasoningContent={"text": "hm"}),
        stop(0),
        delta(1, text="Let me"),
        delta(1, text=" see."),
        stop(1),
        start(2, "c1", "weather"),
        delta(2, toolUse={"input": '{"city":'}),
        delta(2, toolUse={"input": ' "Rome"}'}),
        stop(2),
        start(3, "c2", "time"),
        delta(3, toolUse={"input": "{}"}),
        stop(3),
        {"messageStop": {"stopReason": "tool_use"}},
        {
            "metadata": {
                "usage": {"inputTokens": 3, "outputTokens": 4, "totalTokens": 7},
                "metrics": {"latencyMs": 7},
            }
        },
    ]


async def test_a_stream_without_counts_makes_none_up() -> None:
    assert "metadata" not in (await events(chunks({"content": "x"})))[-1]


async def test_a_stream_that_ends_too_soon_is_an_error() -> None:
    with pytest.raises(ModelStreamErrorException, match="before it was complete"):
        await events(chunks({"content": "x"}, finish=None))


@pytest.mark.parametrize("chunk", [{"error": {"message": "overloaded"}}, {"choices": [3]}, {"choices": 3}])
async def test_a_stream_that_fails_midway(chunk: Document) -> None:
    async def failing() -> AsyncIterator[Document]:
        yield {"choices": [{"delta": {"content": "x"}}]}
        yield chunk

    with pytest.raises(ModelStreamErrorException):
        await events(failing())
