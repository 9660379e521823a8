"""W1 by Pathway, over files that are all there. Its way to Parquet, Delta tables, wants a licence key, so each tier is
stored as CSV."""

import os
import sys

import pathway as pw

events, out = sys.argv[1:]


class Event(pw.Schema):
    event_id: str
    device_id: str
    site: str
    ts: str
    seq: int
    temp_c: float
    humidity: float
    battery_v: float
    status: str
    firmware: str
    lat: float
    lon: float


read = pw.io.jsonlines.read(os.path.dirname(events), schema=Event, mode="static")
bronze = read.with_columns(ts=read.ts.dt.strptime("%Y-%m-%dT%H:%M:%S.%fZ").dt.to_utc("UTC"))
silver = bronze.filter((bronze.status != "error") & (bronze.battery_v > 0.2))
silver = silver.with_columns(temp_f=silver.temp_c * 9 / 5 + 32).without("status")
minutes = silver.select(pw.this.site, pw.this.temp_c, pw.this.humidity, minute=pw.this.ts.dt.floor("1min"))
gold = minutes.groupby(minutes.minute, minutes.site).reduce(
    minutes.minute,
    minutes.site,
    events=pw.reducers.count(),
    mean_temp_c=pw.reducers.avg(minutes.temp_c),
    min_temp_c=pw.reducers.min(minutes.temp_c),
    max_temp_c=pw.reducers.max(minutes.temp_c),
    mean_humidity=pw.reducers.avg(minutes.humidity),
)
for name, table in [("bronze", bronze), ("silver", silver), ("gold", gold)]:
    pw.io.csv.write(table, f"{out}/{name}.csv")
pw.run(monitoring_level=pw.MonitoringLevel.NONE)
