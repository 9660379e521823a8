"""W2 by DataFusion: four COPY statements, each of which reads what the one before has written."""

import os
import sys

from datafusion import SessionConfig, SessionContext

departures, reference, out = sys.argv[1:]
session = SessionContext(SessionConfig().with_target_partitions(2))
csv = "STORED AS CSV OPTIONS ('format.has_header' 'true') LOCATION"
columns = (
    "year INT, month INT, day INT, dep_time INT, sched_dep_time INT, dep_delay DOUBLE, arr_time INT, sched_arr_time INT, "
    "arr_delay DOUBLE, carrier VARCHAR, flight INT, tailnum VARCHAR, origin VARCHAR, dest VARCHAR, air_time DOUBLE, "
    "distance DOUBLE, hour INT, minute INT, time_hour TIMESTAMP WITH TIME ZONE"
)
unknown = ("dep_time", "dep_delay", "arr_time", "arr_delay", "tailnum", "air_time")

# Its reader of CSV takes no text for NULL but the empty one, so such columns are texts first.
types = [column.split(" ", 1) for column in columns.split(", ")]
texts = ", ".join(f"{column} {'VARCHAR' if column in unknown else kind}" for column, kind in types)
typed = ", ".join(f"CAST(nullif({c}, 'NA') AS {kind}) AS {c}" if c in unknown else c for c, kind in types)
session.sql(f"CREATE EXTERNAL TABLE departures ({texts}) {csv} '{os.path.dirname(departures)}/'")
copy = "TO '{}/' STORED AS PARQUET OPTIONS ('format.compression' 'zstd(1)')"
session.sql(f"COPY (SELECT {typed} FROM departures) " + copy.format(f"{out}/bronze")).collect()
session.sql(f"CREATE EXTERNAL TABLE bronze STORED AS PARQUET LOCATION '{out}/bronze/'")
session.sql(
    "COPY (SELECT DISTINCT ON (carrier, flight, time_hour, origin) carrier, flight, tailnum, origin, dest, time_hour, "
    "dep_delay, arr_delay, air_time, distance FROM bronze WHERE dep_delay BETWEEN -120 AND 2000) "
    + copy.format(f"{out}/silver")
).collect()
session.sql(f"CREATE EXTERNAL TABLE silver STORED AS PARQUET LOCATION '{out}/silver/'")
session.sql(
    "COPY (SELECT date_trunc('hour', time_hour) AS hour, origin, count(*) AS departures, avg(dep_delay) AS avg_delay, "
    "max(dep_delay) AS max_delay FROM silver GROUP BY 1, 2) " + copy.format(f"{out}/gold")
).collect()
session.sql(f"CREATE EXTERNAL TABLE gold STORED AS PARQUET LOCATION '{out}/gold/'")
session.sql(f"CREATE EXTERNAL TABLE airports {csv} '{os.path.join(reference, 'airports.csv')}'")
zipped = csv.replace("OPTIONS (", "OPTIONS ('format.compression' 'gzip', ")
session.sql(
    "CREATE EXTERNAL TABLE weather (origin VARCHAR, year INT, month INT, day INT, hour INT, temp VARCHAR, dewp VARCHAR, "
    "humid VARCHAR, wind_dir VARCHAR, wind_speed VARCHAR, wind_gust VARCHAR, precip VARCHAR, pressure VARCHAR, "
    f"visib DOUBLE, time_hour TIMESTAMP WITH TIME ZONE) {zipped} '{os.path.join(reference, 'weather.csv.gz')}'"
)
session.sql(
    "COPY (SELECT h.*, a.name, "
    "CAST(nullif(w.temp, 'NA') AS DOUBLE) AS temp, CAST(nullif(w.wind_speed, 'NA') AS DOUBLE) AS wind_speed, w.visib FROM gold h JOIN airports a ON a.faa = h.origin "
    "LEFT JOIN weather w ON w.origin = h.origin AND w.time_hour = h.hour WHERE h.departures >= 10 AND h.avg_delay > 60) "
    + copy.format(f"{out}/vibranium")
).collect()
