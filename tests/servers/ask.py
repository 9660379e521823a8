"""Asks the tables for what they hold, by readers that are not Nexus: DuckDB for Parquet, deltalake for Delta logs, psycopg
for Postgres.

    ask.py lake FOLDER SQL       the tables of the lake as <tier>.<table>, the quarantine as quarantine."<name>",
                                 and the raw data of pipelines/data as raw.departures, raw.airports, raw.weather
    ask.py postgres URL SQL
    ask.py sorting FILE...       what pyarrow finds of each row group of files: the file, and what it is sorted by
    ask.py read READER FOLDER COLUMN...
                                 the rows of one table in the order of `id`, by duckdb, by pyarrow's read_table (table), by
                                 its dataset, or by that with the columns of all files (union), by polars and spark; of
                                 a Delta table by deltalake and polars_delta
    ask.py versions FOLDER COLUMN
                                 of each version of a Delta table its number, the epoch that has written it, and the
                                 values of a column, sorted
    ask.py newest FOLDER COLUMN  the values of a column in the newest version of a Delta table, sorted
    ask.py foreign FOLDER WHAT   what another writer does to a Delta table: append a copy of its rows, compact its files,
                                 add a column, vacuum, restore the version before, or delete the rows WHERE

Prints one JSON array a row.
"""

import json
import os
import sys
from glob import glob

DATA = os.path.join(os.path.dirname(__file__), "../../pipelines/data")


def lake(folder, sql):
    import duckdb

    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'; SET threads = 2")
    for schema in ("raw", "quarantine", "bronze", "silver", "gold", "vibranium"):
        db.execute(f"CREATE SCHEMA {schema}")
    for schema, below in [("quarantine", "_quarantine")] + [(t, t) for t in ("bronze", "silver", "gold", "vibranium")]:
        for table in sorted(glob(os.path.join(folder, below, "*"))):
            name = os.path.basename(table)
            files = f"{table}/**/*.parquet"
            if os.path.isdir(f"{table}/_delta_log"):
                # What the log names, and not what lies there.
                files = delta(table).file_uris()
            elif not glob(files, recursive=True):
                continue
            if files:
                db.execute(
                    f"""CREATE VIEW {schema}."{name}" AS SELECT * FROM
                    read_parquet({files!r}, union_by_name = true, hive_partitioning = true)"""
                )
    if "raw." not in sql:
        return db.execute(sql).fetchall()
    for name, file in (("departures", "flights-2013-*.csv.gz"), ("airports", "airports.csv"), ("weather", "weather.csv.gz")):
        db.execute(f"CREATE VIEW raw.{name} AS SELECT * FROM read_csv('{DATA}/{file}', header = true, nullstr = 'NA')")
    return db.execute(sql).fetchall()


def postgres(url, sql):
    import psycopg

    with psycopg.connect(url) as connection:
        return connection.execute(sql).fetchall()


def sorting(*files):
    import pyarrow.parquet

    for file in files:
        found = pyarrow.parquet.ParquetFile(file).metadata
        for number in range(found.num_row_groups):
            group = found.row_group(number)
            columns = [
                [group.column(by.column_index).path_in_schema, by.descending, by.nulls_first]
                for by in group.sorting_columns
            ]
            yield [file, columns]
def delta(folder, version=None):
    """Opens a Delta table, in a folder or on S3 as the environment says."""
    from deltalake import DeltaTable

    return DeltaTable(folder, version=version, storage_options={"AWS_ALLOW_HTTP": "true"})


def versions(folder, column):
    newest = delta(folder)
    for commit in sorted(newest.history(), key=lambda commit: commit["version"]):
        values = delta(folder, commit["version"]).to_pyarrow_table(columns=[column])[column].to_pylist()
        epoch = commit.get("operationParameters", {}).get("epochId")
        yield [commit["version"], epoch and int(epoch), sorted(values)]


def newest(folder, column):
    return [sorted(delta(folder).to_pyarrow_table(columns=[column])[column].to_pylist())]


def foreign(folder, what):
    from deltalake import Field, write_deltalake

    table = delta(folder)
    if what == "append":
        write_deltalake(table, table.to_pyarrow_table(), mode="append")
    elif what == "compact":
        table.optimize.compact()
    elif what == "column":
        table.alter.add_columns([Field("foreign", "string")])
    elif what == "vacuum":
        table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True)
    elif what == "restore":
        table.restore(table.version() - 1)
    else:
        table.delete(what)
    return []


def by_spark(folder, columns):
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    # Times of day are read, but not by default.
    builder = builder.config("spark.sql.timeType.enabled", "true")
    spark = builder.config("spark.sql.session.timeZone", "UTC").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark.read.parquet(folder).selectExpr(*[f"`{column}`" for column in columns]).toArrow().to_pylist()


def read(reader, folder, *columns):
    if reader in ("spark", "polars", "polars_delta", "deltalake"):
        if reader == "spark":
            rows = by_spark(folder, columns)
        elif reader == "deltalake":
            rows = delta(folder).to_pyarrow_table(columns=list(columns)).to_pylist()
        else:
            import polars

            files = os.path.join(folder, "**/*.parquet")
            found = polars.read_delta(folder) if reader == "polars_delta" else polars.read_parquet(files, hive_partitioning=True)
            rows = found.select(list(columns)).to_arrow().to_pylist()
        rows = [list(row.values()) for row in sorted(rows, key=lambda row: row["id"])]
    elif reader == "duckdb":
        import duckdb

        db = duckdb.connect()
        db.execute("SET TimeZone = 'UTC'")
        names = ", ".join(f'"{column}"' for column in columns)
        files = os.path.join(folder, "**/*.parquet")
        rows = db.execute(f"SELECT {names} FROM read_parquet(?, union_by_name = true, hive_partitioning = true) ORDER BY id", [files]).fetchall()
    else:
        import pyarrow.dataset
        import pyarrow.parquet

        if reader == "table":
            found = pyarrow.parquet.read_table(folder)
        else:
            found = pyarrow.dataset.dataset(folder, partitioning="hive")
            if reader == "union":
                schemas = [pyarrow.parquet.read_schema(file) for file in found.files]
                folders = [field for field in found.schema if field.name not in schemas[0].names]
                whole = pyarrow.unify_schemas([*schemas, pyarrow.schema(folders)], promote_options="permissive")
                found = pyarrow.dataset.dataset(folder, schema=whole, partitioning="hive")
            found = found.to_table()
        # Sorted here: pyarrow cannot sort what it reads from folders' names if one is that of NULL.
        rows = sorted(found.select(list(columns)).to_pylist(), key=lambda row: row["id"])
        rows = [list(row.values()) for row in rows]
    return [[same(value) for value in row] for row in rows]


def same(value):
    """Writes a value in the same way whichever reader gave it."""
    import datetime
    import decimal

    if isinstance(value, (bytes, bytearray)):
        return bytes(value).hex()
    if isinstance(value, datetime.datetime):
        return (value.astimezone(datetime.timezone.utc) if value.tzinfo else value).isoformat()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, dict):
        return {key: same(item) for key, item in value.items()}
    if isinstance(value, list):
        pairs = value and all(isinstance(item, tuple) for item in value)
        return same(dict(value)) if pairs else [same(item) for item in value]
    return value


def main():
    verbs = {
        "lake": lake,
        "postgres": postgres,
        "read": read,
        "sorting": sorting,
        "versions": versions,
        "newest": newest,
        "foreign": foreign,
    }
    for row in verbs[sys.argv[1]](*sys.argv[2:]):
        print(json.dumps(row, default=plain))


def plain(value):
    """Numbers as numbers, and what JSON does not know as text."""
    import decimal

    return float(value) if isinstance(value, decimal.Decimal) else str(value)


main()
# Not by way of the interpreter's end: threads of the readers that still run would abort the process there.
sys.stdout.flush()
os._exit(0)
