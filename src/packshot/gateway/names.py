"""The names of what the gateway tells: every metric, and the attributes of its traces.

Metrics are in base units (seconds, EUR). docs/metrics.md says the same for people; a test holds the
two together. Spans and their attributes are those of OpenTelemetry's conventions for generative AI
(semantic-conventions 1.37, docs/gen-ai/gen-ai-spans.md); what they do not know begins "packshot.".
"""

from __future__ import annotations

from packshot.ledger.names import Metric

__all__ = ["METRICS", "OTHER", "Metric"]

OTHER = "other"
"""What stands for label values beyond their limit."""

SECONDS = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28),
    *(2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36),
)
"""Bounds of the buckets that the conventions ask for (gen_ai.server.request.duration), and three
more: a call may take ten minutes."""

FIRST_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
"""The same of the time to the first token (gen_ai.server.time_to_first_token)."""

OVERHEAD_SECONDS = (
    *(10e-6, 20e-6, 30e-6, 45e-6, 60e-6, 80e-6, 100e-6, 150e-6),
    *(200e-6, 300e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 100e-3),
)
"""From 10 µs, less than any call costs, to 100 ms; 45 µs is the goal for the hot path."""


CALL = ("surface", "route", "provider", "model")

REQUESTS = Metric(
    "packshot_gateway_requests_total",
    "counter",
    (*CALL, "status"),
    "Requests that ended, by the HTTP status of their answer; 499 for callers that hung up.",
)
DURATION = Metric(
    "packshot_gateway_request_seconds",
    "histogram",
    CALL,
    "From a request's first byte to the answer's last.",
    bounds=SECONDS,
)
FIRST_BYTE = Metric(
    "packshot_gateway_first_byte_seconds",
    "histogram",
    CALL,
    "From a request's first byte to a streamed answer's first.",
    bounds=FIRST_SECONDS,
)
OVERHEAD = Metric(
    "packshot_gateway_overhead_seconds",
    "histogram",
    ("surface",),
    "Time of a request that was not spent waiting for a provider.",
    bounds=OVERHEAD_SECONDS,
)
ATTEMPTS = Metric(
    "packshot_gateway_attempts_total",
    "counter",
    ("provider", "key", "model", "outcome"),
    "Calls of providers that ended, by how.",
)
RETRIES = Metric(
    "packshot_gateway_retries_total",
    "counter",
    ("provider", "why"),
    "Retries of the same target, by the failure before.",
)
FALLBACKS = Metric(
    "packshot_gateway_fallbacks_total",
    "counter",
    ("route", "provider"),
    "Requests that went on to a next target, by its provider.",
)
REFUSED_RETRIES = Metric(
    "packshot_gateway_retries_refused_total",
    "counter",
    ("provider",),
    "Retries that were not made because the retry budget was spent.",
)
OPENED = Metric(
    "packshot_gateway_breaker_opened_total",
    "counter",
    ("provider", "key", "model"),
    "How often a circuit breaker opened.",
)
TOKENS = Metric(
    "packshot_gateway_tokens_total",
    "counter",
    ("direction", "provider", "model"),
    'Tokens of requests that ended, as providers counted them (direction "input", "output").',
)
COST = Metric(
    "packshot_gateway_cost_eur_total",
    "counter",
    ("route", "provider", "model"),
    "EUR booked for requests until they ended.",
    unit=1_000_000_000,
)
CACHE = Metric(
    "packshot_gateway_cache_total",
    "counter",
    ("route", "result"),
    'Calls by what the response cache did: "exact", "semantic", "miss", "refresh", "bypass".',
)
CACHE_SAVED = Metric(
    "packshot_gateway_cache_saved_eur_total",
    "counter",
    ("route", "kind"),
    'EUR that answers from the cache had cost when they were made ("exact", "semantic").',
    unit=1_000_000_000,
)
CACHE_CHECKS = Metric(
    "packshot_gateway_cache_checks_total",
    "counter",
    ("route", "verdict"),
    'Semantic hits that were checked, by what was found ("same", "false", "open").',
)
CACHE_EMBEDDINGS = Metric(
    "packshot_gateway_cache_embeddings_total",
    "counter",
    ("result",),
    'Texts for which the embeddings route was asked: "made", "late", "failed", "full", "resting".',
)
CACHE_OFF = Metric(
    "packshot_gateway_cache_semantic_off",
    "gauge",
    ("route",),
    "Workers that answer a route from the exact tier only, since too many checks were false.",
)
CACHE_ENTRIES = Metric(
    "packshot_gateway_cache_entries", "gauge", (), "Answers in the workers' memory."
)
CACHE_BYTES = Metric(
    "packshot_gateway_cache_bytes", "gauge", (), "Bytes of the answers in the workers' memory."
)
ERRORS = Metric(
    "packshot_gateway_errors_total", "counter", (), "Errors of the gateway's own; the log has them."
)
LOCAL_LIMITS = Metric(
    "packshot_gateway_limits_local_total",
    "counter",
    (),
    "Limits that a worker decided alone, since the shared store was away.",
)
DROPPED = Metric(
    "packshot_gateway_telemetry_dropped_total",
    "counter",
    ("what",),
    'Lines of log, spans or contents that could not be written ("log", "traces", "content").',
)
BREAKER_OPEN = Metric(
    "packshot_gateway_breaker_open",
    "gauge",
    ("provider", "key", "model"),
    "Workers whose circuit breaker is open.",
)
KEY_RESTS = Metric(
    "packshot_gateway_key_resting",
    "gauge",
    ("provider", "key"),
    "Workers in which the key cools down or is out.",
)
KEY_OUT = Metric(
    "packshot_gateway_key_out",
    "gauge",
    ("provider", "key", "why"),
    'Workers to which the provider refused the key ("auth") or its account is empty ("quota").',
)
IN_FLIGHT = Metric("packshot_gateway_in_flight", "gauge", (), "Requests under way.")
DRAINS = Metric(
    "packshot_gateway_drains",
    "gauge",
    (),
    "Streams whose caller is gone, read on to learn their cost.",
)
CONNECTIONS = Metric(
    "packshot_gateway_connections",
    "gauge",
    ("provider", "state"),
    'Connections to providers ("idle", "busy").',
)
WAITING = Metric(
    "packshot_gateway_waiting",
    "gauge",
    ("provider",),
    "Calls that wait for a connection to their provider.",
)
LIMITS_AWAY = Metric(
    "packshot_gateway_limits_away", "gauge", (), "Workers that cannot reach the shared limits."
)
WORKERS = Metric("packshot_gateway_workers", "gauge", (), "Workers that are alive.")

METRICS: tuple[Metric, ...] = (
    REQUESTS,
    DURATION,
    FIRST_BYTE,
    OVERHEAD,
    ATTEMPTS,
    RETRIES,
    FALLBACKS,
    REFUSED_RETRIES,
    OPENED,
    TOKENS,
    COST,
    CACHE,
    CACHE_SAVED,
    CACHE_CHECKS,
    CACHE_EMBEDDINGS,
    CACHE_OFF,
    CACHE_ENTRIES,
    CACHE_BYTES,
    ERRORS,
    LOCAL_LIMITS,
    DROPPED,
    BREAKER_OPEN,
    KEY_RESTS,
    KEY_OUT,
    IN_FLIGHT,
    DRAINS,
    CONNECTIONS,
    WAITING,
    LIMITS_AWAY,
    WORKERS,
)

# ---------------------------------------------------------------- traces
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
MODEL = "gen_ai.request.model"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
ERROR = "error.type"
STATUS = "http.response.status_code"
REQUEST = "packshot.request.id"
ROUTE = "packshot.route"
KEY = "packshot.key"
VIRTUAL_KEY = "packshot.virtual_key"
TEAM = "packshot.team"
COST_EUR = "packshot.cost_eur"

OPERATIONS = {"embeddings": "embeddings", "images": "generate_content"}
"""Of a surface, where it is not "chat"."""
