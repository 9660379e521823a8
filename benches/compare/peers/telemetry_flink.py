"""W1 by PyFlink: one job in batch mode. Its packages in the registry have no Parquet, so each tier is stored as CSV."""

import os
import sys

from pyflink.table import EnvironmentSettings, TableEnvironment

events, out = sys.argv[1:]
flink = TableEnvironment.create(EnvironmentSettings.in_batch_mode())
settings = flink.get_config()
settings.set("parallelism.default", "2")
settings.set("table.local-time-zone", "UTC")
columns = (
    "event_id STRING, device_id STRING, site STRING, ts TIMESTAMP_LTZ(3), seq BIGINT, temp_c DOUBLE, {}humidity DOUBLE, "
    "battery_v DOUBLE, {}firmware STRING, lat DOUBLE, lon DOUBLE"
)
gold = (
    "`minute` TIMESTAMP_LTZ(3), site STRING, events BIGINT, mean_temp_c DOUBLE, min_temp_c DOUBLE, max_temp_c DOUBLE, "
    "mean_humidity DOUBLE"
)


def files(name, fields, path, form):
    flink.execute_sql(f"CREATE TABLE {name} ({fields}) WITH ('connector' = 'filesystem', 'path' = 'file://{path}', {form})")


bronze, silver = columns.format("", "status STRING, "), columns.format("temp_f DOUBLE, ", "")
files("events", bronze, os.path.dirname(events), "'format' = 'json', 'json.timestamp-format.standard' = 'ISO-8601'")
for name, fields in [("bronze", bronze), ("silver", silver), ("gold", gold)]:
    files(name, fields, f"{out}/{name}", "'format' = 'csv'")
flink.execute_sql(
    "CREATE VIEW good AS SELECT event_id, device_id, site, ts, seq, temp_c, temp_c * 9 / 5 + 32 AS temp_f, humidity, "
    "battery_v, firmware, lat, lon FROM events WHERE status <> 'error' AND battery_v > 0.2"
)
job = flink.create_statement_set()
job.add_insert_sql("INSERT INTO bronze SELECT * FROM events")
job.add_insert_sql("INSERT INTO silver SELECT * FROM good")
job.add_insert_sql(
    "INSERT INTO gold SELECT FLOOR(ts TO MINUTE), site, count(*), avg(temp_c), min(temp_c), max(temp_c), avg(humidity) "
    "FROM good GROUP BY FLOOR(ts TO MINUTE), site"
)
job.execute().wait()
