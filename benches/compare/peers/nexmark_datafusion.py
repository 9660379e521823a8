"""A query of Nexmark by DataFusion, into Parquet or into nothing."""

import sys

from datafusion import SessionConfig, SessionContext

QUERIES = {
    "q0": "SELECT auction, bidder, price, date_time, extra FROM bid",
    "q1": "SELECT auction, bidder, 0.908 * price AS price, date_time, extra FROM bid",
    "q2": "SELECT auction, price FROM bid WHERE auction % 123 = 0",
    "q4": """SELECT category, avg(final) AS mean FROM (
        SELECT a.id, a.category, max(b.price) AS final FROM auction a JOIN bid b ON a.id = b.auction
        WHERE b.date_time BETWEEN a.date_time AND a.expires GROUP BY 1, 2) GROUP BY 1""",
    "q5": """WITH hopped AS (
        SELECT date_bin(INTERVAL '2 seconds', date_time) - back AS start, auction, count(*) AS bids
        FROM bid CROSS JOIN (SELECT unnest([
            INTERVAL '0 seconds', INTERVAL '2 seconds', INTERVAL '4 seconds', INTERVAL '6 seconds', INTERVAL '8 seconds'
        ]) AS back) GROUP BY 1, 2)
        SELECT start, auction, bids FROM (SELECT *, max(bids) OVER (PARTITION BY start) AS most FROM hopped) WHERE bids = most""",
    "q7": """SELECT auction, bidder, price, date_time, extra FROM (
        SELECT *, max(price) OVER (PARTITION BY date_bin(INTERVAL '10 seconds', date_time)) AS most FROM bid)
        WHERE price = most""",
    "q8": """SELECT DISTINCT p.id, p.name, date_bin(INTERVAL '10 seconds', p.date_time) AS start
        FROM person p JOIN auction a ON p.id = a.seller
        AND date_bin(INTERVAL '10 seconds', p.date_time) = date_bin(INTERVAL '10 seconds', a.date_time)""",
}

events, query, into, out = sys.argv[1:]
session = SessionContext(SessionConfig().with_target_partitions(2))
for table in ("person", "auction", "bid"):
    session.register_parquet(table, f"{events}/{table}.parquet")
if into == "nothing":
    for _ in session.sql(QUERIES[query]).execute_stream():
        pass
else:
    copy = f"COPY ({QUERIES[query]}) TO '{out}/{query}/' STORED AS PARQUET OPTIONS ('format.compression' 'zstd(1)')"
    session.sql(copy).collect()
