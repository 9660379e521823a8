"""W1 by Polars' streaming engine: three sinks, each of which reads what the one before has written."""

import sys

import polars as pl

events, out = sys.argv[1:]
text, number = pl.String, pl.Float64
columns = {
    "event_id": text, "device_id": text, "site": text, "ts": text, "seq": pl.Int64, "temp_c": number,
    "humidity": number, "battery_v": number, "status": text, "firmware": text, "lat": number, "lon": number,
}  # fmt: skip
parquet = {"compression": "zstd", "compression_level": 1}

# Its reader of JSON has no time with a zone, so the text is parsed behind it.
time = pl.col("ts").str.to_datetime("%Y-%m-%dT%H:%M:%S%.3fZ", time_unit="us", time_zone="UTC")
pl.scan_ndjson(events, schema=columns).with_columns(time).sink_parquet(f"{out}/bronze.parquet", **parquet)
(
    pl.scan_parquet(f"{out}/bronze.parquet")
    .filter((pl.col("status") != "error") & (pl.col("battery_v") > 0.2))
    .with_columns((pl.col("temp_c") * 9 / 5 + 32).alias("temp_f"))
    .drop("status")
    .sink_parquet(f"{out}/silver.parquet", **parquet)
)
(
    pl.scan_parquet(f"{out}/silver.parquet")
    .group_by(pl.col("ts").dt.truncate("1m").alias("minute"), "site")
    .agg(
        pl.len().alias("events"),
        pl.col("temp_c").mean().alias("mean_temp_c"),
        pl.col("temp_c").min().alias("min_temp_c"),
        pl.col("temp_c").max().alias("max_temp_c"),
        pl.col("humidity").mean().alias("mean_humidity"),
    )
    .sink_parquet(f"{out}/gold.parquet", **parquet)
)
