"""W1 by DataFusion: three COPY statements, each of which reads what the one before has written."""

import os
import sys

from datafusion import SessionConfig, SessionContext

events, out = sys.argv[1:]
session = SessionContext(SessionConfig().with_target_partitions(2))
zipped = events.endswith(".gz")
options = "OPTIONS ('format.compression' 'gzip')" if zipped else ""
session.sql(
    "CREATE EXTERNAL TABLE events (event_id VARCHAR, device_id VARCHAR, site VARCHAR, "
    "ts TIMESTAMP WITH TIME ZONE, seq BIGINT, temp_c DOUBLE, humidity DOUBLE, battery_v DOUBLE, status VARCHAR, "
    f"firmware VARCHAR, lat DOUBLE, lon DOUBLE) STORED AS JSON {options} LOCATION '{os.path.dirname(events)}/'"
)
copy = "TO '{}/' STORED AS PARQUET OPTIONS ('format.compression' 'zstd(1)')"
session.sql("COPY (SELECT * FROM events) " + copy.format(f"{out}/bronze")).collect()
session.sql(f"CREATE EXTERNAL TABLE bronze STORED AS PARQUET LOCATION '{out}/bronze/'")
session.sql(
    "COPY (SELECT event_id, device_id, site, ts, seq, temp_c, temp_c * 9 / 5 + 32 AS temp_f, humidity, battery_v, "
    "firmware, lat, lon FROM bronze WHERE status <> 'error' AND battery_v > 0.2) " + copy.format(f"{out}/silver")
).collect()
session.sql(f"CREATE EXTERNAL TABLE silver STORED AS PARQUET LOCATION '{out}/silver/'")
session.sql(
    "COPY (SELECT date_trunc('minute', ts) AS minute, site, count(*) AS events, avg(temp_c) AS mean_temp_c, "
    "min(temp_c) AS min_temp_c, max(temp_c) AS max_temp_c, avg(humidity) AS mean_humidity "
    "FROM silver GROUP BY 1, 2) " + copy.format(f"{out}/gold")
).collect()
