"""W1 by Spark Structured Streaming: three `availableNow` streams, each of which reads what the one before has written.

A stream of files may write no aggregate before its watermark, and `availableNow` ends before the last windows are
out; so gold goes through `foreachBatch` with the complete result, which is what people do about it.
"""

import os
import sys

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

events, out = sys.argv[1:]
spark = (
    SparkSession.builder.master("local[2]")
    .config("spark.ui.enabled", "false")
    .config("spark.driver.memory", "4g")
    .config("spark.sql.shuffle.partitions", "2")
    .config("spark.sql.session.timeZone", "UTC")
    .config("spark.sql.parquet.compression.codec", "zstd")
    .config("parquet.compression.codec.zstd.level", "1")
    .getOrCreate()
)
spark.sparkContext.setLogLevel("ERROR")
columns = (
    "event_id string, device_id string, site string, ts timestamp, seq bigint, temp_c double, humidity double, "
    "battery_v double, status string, firmware string, lat double, lon double"
)


def run(rows, name):
    query = rows.writeStream.format("parquet").option("checkpointLocation", f"{out}/_checkpoints/{name}")
    query.trigger(availableNow=True).start(f"{out}/{name}").awaitTermination()


def stored(name):
    return spark.readStream.schema(spark.read.parquet(f"{out}/{name}").schema).parquet(f"{out}/{name}")


run(spark.readStream.schema(columns).json(os.path.dirname(events)), "bronze")
bronze = stored("bronze").where("status <> 'error' AND battery_v > 0.2")
run(bronze.withColumn("temp_f", F.expr("temp_c * 9 / 5 + 32")).drop("status"), "silver")
gold = (
    stored("silver")
    .groupBy(F.date_trunc("minute", "ts").alias("minute"), "site")
    .agg(
        F.count("*").alias("events"),
        F.avg("temp_c").alias("mean_temp_c"),
        F.min("temp_c").alias("min_temp_c"),
        F.max("temp_c").alias("max_temp_c"),
        F.avg("humidity").alias("mean_humidity"),
    )
)
(
    gold.writeStream.outputMode("complete")
    .option("checkpointLocation", f"{out}/_checkpoints/gold")
    .trigger(availableNow=True)
    .foreachBatch(lambda rows, _: rows.write.mode("overwrite").parquet(f"{out}/gold"))
    .start()
    .awaitTermination()
)
spark.stop()
