"""W1 by DuckDB: three COPY statements, each of which reads what the one before has written."""

import sys

import duckdb

events, out = sys.argv[1:]
columns = (
    "{event_id: 'VARCHAR', device_id: 'VARCHAR', site: 'VARCHAR', ts: 'TIMESTAMPTZ', seq: 'BIGINT', temp_c: 'DOUBLE', "
    "humidity: 'DOUBLE', battery_v: 'DOUBLE', status: 'VARCHAR', firmware: 'VARCHAR', lat: 'DOUBLE', lon: 'DOUBLE'}"
)
parquet = "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
db = duckdb.connect(config={"threads": 2, "preserve_insertion_order": False})
db.execute("SET TimeZone = 'UTC'")
db.execute(
    f"COPY (SELECT * FROM read_json('{events}', format = 'newline_delimited', columns = {columns})) "
    f"TO '{out}/bronze.parquet' {parquet}"
)
db.execute(
    f"COPY (SELECT * EXCLUDE (status), temp_c * 9 / 5 + 32 AS temp_f FROM '{out}/bronze.parquet' "
    f"WHERE status <> 'error' AND battery_v > 0.2) TO '{out}/silver.parquet' {parquet}"
)
db.execute(
    "COPY (SELECT date_trunc('minute', ts) AS minute, site, count(*) AS events, avg(temp_c) AS mean_temp_c, "
    "min(temp_c) AS min_temp_c, max(temp_c) AS max_temp_c, avg(humidity) AS mean_humidity "
    f"FROM '{out}/silver.parquet' GROUP BY ALL) TO '{out}/gold.parquet' {parquet}"
)
