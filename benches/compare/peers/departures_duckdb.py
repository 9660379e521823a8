"""W2 by DuckDB: four COPY statements, each of which reads what the one before has written."""

import os
import sys

import duckdb

departures, reference, out = sys.argv[1:]
columns = (
    "{year: 'INTEGER', month: 'INTEGER', day: 'INTEGER', dep_time: 'INTEGER', sched_dep_time: 'INTEGER', "
    "dep_delay: 'DOUBLE', arr_time: 'INTEGER', sched_arr_time: 'INTEGER', arr_delay: 'DOUBLE', carrier: 'VARCHAR', "
    "flight: 'INTEGER', tailnum: 'VARCHAR', origin: 'VARCHAR', dest: 'VARCHAR', air_time: 'DOUBLE', distance: 'DOUBLE', "
    "hour: 'INTEGER', minute: 'INTEGER', time_hour: 'TIMESTAMPTZ'}"
)
parquet = "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
db = duckdb.connect(config={"threads": 2, "preserve_insertion_order": False})
db.execute("SET TimeZone = 'UTC'")
db.execute(
    f"COPY (SELECT * FROM read_csv('{departures}', header = true, nullstr = ['NA', ''], auto_detect = false, columns = {columns})) "
    f"TO '{out}/bronze.parquet' {parquet}"
)
db.execute(
    "COPY (SELECT DISTINCT ON (carrier, flight, time_hour, origin) carrier, flight, tailnum, origin, dest, time_hour, "
    f"dep_delay, arr_delay, air_time, distance FROM '{out}/bronze.parquet' WHERE dep_delay BETWEEN -120 AND 2000) "
    f"TO '{out}/silver.parquet' {parquet}"
)
db.execute(
    "COPY (SELECT date_trunc('hour', time_hour) AS hour, origin, count(*) AS departures, avg(dep_delay) AS avg_delay, "
    f"max(dep_delay) AS max_delay FROM '{out}/silver.parquet' GROUP BY ALL) TO '{out}/gold.parquet' {parquet}"
)
weather, airports = (os.path.join(reference, name) for name in ("weather.csv.gz", "airports.csv"))
db.execute(
    f"COPY (SELECT h.*, a.name, w.temp, w.wind_speed, w.visib FROM '{out}/gold.parquet' h "
    f"JOIN read_csv('{airports}') a ON a.faa = h.origin LEFT JOIN read_csv('{weather}', nullstr = 'NA') w "
    "ON w.origin = h.origin AND w.time_hour = h.hour "
    f"WHERE departures >= 10 AND avg_delay > 60) TO '{out}/vibranium.parquet' {parquet}"
)
