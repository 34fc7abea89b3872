"""How spans leave the process: started once, by whoever composes planes.

A service sends OTLP over HTTP, as OpenTelemetry's own environment variables say (OTEL_EXPORTER_OTLP_ENDPOINT, ...);
embedded mode hands spans to a processor of its own.
"""

from __future__ import annotations

import asyncio
import logging

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.distro import OpenTelemetryConfigurator
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider, sampling

from agentkeep.core.telemetry_content import capture_settings
from agentkeep.core.telemetry_settings import TelemetrySettings

__all__ = ["Telemetry", "start"]

logger = logging.getLogger(__name__)

OTLP_OVER_HTTP = "otlp_proto_http"


class Telemetry:
    """What `start` began."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider

    async def flush(self) -> None:
        """What was recorded so far has left, or could not."""
        await asyncio.to_thread(self._provider.force_flush)

    async def stop(self) -> None:
        """The same, and from here on nothing is sent."""
        await self.flush()
        _relay.to = None


def start(
    service_name: str, processor: SpanProcessor | None = None, settings: TelemetrySettings | None = None
) -> Telemetry:
    """Spans of the whole process go to `processor`; without one, over OTLP to where OTEL_* says. Stop it at the end.

    Every span is taken, sampled by the caller or not: a caller must not be able to act unseen. OpenTelemetry knows one
    tracer provider in a process's life, so a second start in the same process goes on with the first one's.
    """
    capture_settings(settings or TelemetrySettings())
    _relay.to = processor
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        return Telemetry(provider)
    if processor is None:
        OpenTelemetryConfigurator().configure(  # type: ignore[no-untyped-call]
            trace_exporter_names=[OTLP_OVER_HTTP],
            resource_attributes={SERVICE_NAME: service_name},
            sampler=sampling.ALWAYS_ON,
        )
        provider = trace.get_tracer_provider()
        if not isinstance(provider, TracerProvider):
            raise RuntimeError("OpenTelemetry did not start: its configuration (OTEL_*) has replaced the SDK")
    else:
        resource = Resource.create({SERVICE_NAME: service_name})
        provider = TracerProvider(sampling.ALWAYS_ON, resource, shutdown_on_exit=False)
        trace.set_tracer_provider(provider)
    provider.add_span_processor(_relay)
    return Telemetry(provider)


class _Relay(SpanProcessor):
    """A provider takes processors and gives none back: this one is given, and its target changes."""

    to: SpanProcessor | None = None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        pass

    def on_end(self, span: ReadableSpan) -> None:
        if self.to is not None:
            self.to.on_end(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self.to.force_flush(timeout_millis) if self.to is not None else True


_relay = _Relay()
