"""W2 by Polars' streaming engine: four sinks, each of which reads what the one before has written."""

import os
import sys

import polars as pl

departures, reference, out = sys.argv[1:]
whole, number, text = pl.Int32, pl.Float64, pl.String
columns = {
    "year": whole, "month": whole, "day": whole, "dep_time": whole, "sched_dep_time": whole, "dep_delay": number,
    "arr_time": whole, "sched_arr_time": whole, "arr_delay": number, "carrier": text, "flight": whole, "tailnum": text,
    "origin": text, "dest": text, "air_time": number, "distance": number, "hour": whole, "minute": whole,
    "time_hour": text,
}  # fmt: skip
parquet = {"compression": "zstd", "compression_level": 1}
key = ["carrier", "flight", "time_hour", "origin"]


def time(name):
    return pl.col(name).str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC")


(
    pl.scan_csv(departures, schema=columns, null_values="NA")
    .with_columns(time("time_hour"))
    .sink_parquet(f"{out}/bronze.parquet", **parquet)
)
(
    pl.scan_parquet(f"{out}/bronze.parquet")
    .filter(pl.col("dep_delay").is_between(-120, 2000))
    .select(*key, "tailnum", "dest", "dep_delay", "arr_delay", "air_time", "distance")
    .unique(subset=key, keep="any")
    .sink_parquet(f"{out}/silver.parquet", **parquet)
)
(
    pl.scan_parquet(f"{out}/silver.parquet")
    .group_by(pl.col("time_hour").dt.truncate("1h").alias("hour"), "origin")
    .agg(
        pl.len().alias("departures"),
        pl.col("dep_delay").mean().alias("avg_delay"),
        pl.col("dep_delay").max().alias("max_delay"),
    )
    .sink_parquet(f"{out}/gold.parquet", **parquet)
)
airports = pl.scan_csv(os.path.join(reference, "airports.csv"), infer_schema=False).select("faa", "name")
weather = pl.scan_csv(os.path.join(reference, "weather.csv.gz"), null_values="NA", infer_schema_length=None).select(
    "origin", "temp", "wind_speed", "visib", time("time_hour").alias("hour")
)
(
    pl.scan_parquet(f"{out}/gold.parquet")
    .filter((pl.col("departures") >= 10) & (pl.col("avg_delay") > 60))
    .join(airports, left_on="origin", right_on="faa")
    .join(weather, on=["origin", "hour"], how="left")
    .sink_parquet(f"{out}/vibranium.parquet", **parquet)
)
