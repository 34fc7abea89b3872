"""Writing an output's event stream: one-key dictionaries in, messages of the AWS event stream out."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import orjson

from agentkeep.core.errors import InternalServerException, ServiceError
from agentkeep.wire.errors import error_document, error_model
from agentkeep.wire.eventstream import encode
from agentkeep.wire.json_writer import JsonWriter
from agentkeep.wire.model import OperationModel, Shape

__all__ = ["EventMessages", "EventWriter"]

logger = logging.getLogger(__name__)

_JSON: Final = "application/json"


class EventWriter:
    """Writes the events of one event stream shape."""

    def __init__(self, stream: Shape, operation: OperationModel) -> None:
        self._operation = operation
        self._events = {m.name: JsonWriter(m.shape) for m in stream.members.values() if not m.shape.error}
        # In a stream an error is named by its member: throttlingException.
        self._errors = {m.shape.name: m.name for m in stream.members.values() if m.shape.error}

    def event(self, event: Mapping[str, Any]) -> bytes:
        """One message. `event` has one member set: `{"chunk": {...}}`."""
        ((name, value),) = ((k, v) for k, v in event.items() if v is not None)
        payload = self._events[name].write(value)
        return encode({":event-type": name, ":content-type": _JSON, ":message-type": "event"}, payload)

    def error(self, error: ServiceError) -> bytes:
        """The message that ends a stream which failed: as the stream models the error, else an unmodelled one."""
        model = error_model(error, self._operation)
        name = self._errors.get(model.code) or self._errors.get(error.code)
        if name is None:
            return encode({":error-code": error.code, ":error-message": error.message, ":message-type": "error"}, b"")
        payload = orjson.dumps(error_document(error, model))
        return encode({":exception-type": name, ":content-type": _JSON, ":message-type": "exception"}, payload)

    def stream(self, source: AsyncIterator[Mapping[str, Any]]) -> EventMessages:
        return EventMessages(self, source, self._operation.name)


class EventMessages:
    """Messages as events come. A failure of the source becomes the last message, since the status has been sent; what
    is not meant for callers is logged instead.

    Whoever reads it closes it (`aclose`), which closes the source; unlike a generator, it need not have begun.
    """

    def __init__(self, writer: EventWriter, source: AsyncIterator[Mapping[str, Any]], operation: str) -> None:
        self._writer = writer
        self._source = source
        self._operation = operation
        self._ended = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._ended:
            await self.aclose()
            raise StopAsyncIteration
        try:
            return self._writer.event(await anext(self._source))
        except StopAsyncIteration:
            await self.aclose()
            raise
        except ServiceError as error:
            last = self._writer.error(error)
        except Exception:
            logger.exception("%s failed in its event stream", self._operation)
            last = self._writer.error(InternalServerException("The service failed while it was answering; see its log"))
        self._ended = True
        return last

    async def aclose(self) -> None:
        self._ended = True
        close = getattr(self._source, "aclose", None)  # a generator's; other iterators hold nothing open
        if close is not None:
            await close()
