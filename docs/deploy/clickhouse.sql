-- Steps come at least once: of rows with the same ids, ReplacingMergeTree keeps one when it merges, FINAL at once.
-- The columns are those that the Collector's clickhouse exporter fills.
CREATE TABLE otel_traces (
    Timestamp          DateTime64(9) CODEC(Delta, ZSTD(1)),
    TraceId            String CODEC(ZSTD(1)),
    SpanId             String CODEC(ZSTD(1)),
    ParentSpanId       String CODEC(ZSTD(1)),
    TraceState         String CODEC(ZSTD(1)),
    SpanName           LowCardinality(String) CODEC(ZSTD(1)),
    SpanKind           LowCardinality(String) CODEC(ZSTD(1)),
    ServiceName        LowCardinality(String) CODEC(ZSTD(1)),
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeName          String CODEC(ZSTD(1)),
    ScopeVersion       String CODEC(ZSTD(1)),
    SpanAttributes     Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    Duration           UInt64 CODEC(ZSTD(1)),
    StatusCode         LowCardinality(String) CODEC(ZSTD(1)),
    StatusMessage      String CODEC(ZSTD(1)),
    Events Nested (
        Timestamp DateTime64(9), Name LowCardinality(String), Attributes Map(LowCardinality(String), String)
    ) CODEC(ZSTD(1)),
    Links Nested (
        TraceId String, SpanId String, TraceState String, Attributes Map(LowCardinality(String), String)
    ) CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toDate(Timestamp)
ORDER BY (ServiceName, toStartOfHour(Timestamp), TraceId, SpanId)
TTL toDateTime(Timestamp) + INTERVAL 90 DAY;

-- What it cost, exact, by day and model.
CREATE VIEW costs AS
SELECT
    toDate(Timestamp) AS day,
    SpanAttributes['gen_ai.response.model'] AS model,
    count() AS steps,
    sum(toUInt64OrZero(SpanAttributes['gen_ai.usage.input_tokens'])) AS input_tokens,
    sum(toUInt64OrZero(SpanAttributes['gen_ai.usage.output_tokens'])) AS output_tokens,
    sum(toDecimal128OrZero(SpanAttributes['picostep.cost_usd'], 12)) AS usd,
    countIf(SpanAttributes['picostep.cost_usd'] = '') AS without_cost
FROM otel_traces FINAL
WHERE SpanAttributes['gen_ai.operation.name'] = 'chat'
GROUP BY day, model;
