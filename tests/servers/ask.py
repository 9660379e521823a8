"""Asks the tables for what they hold, by readers that are not Nexus: DuckDB for Parquet, psycopg for Postgres.

    ask.py lake FOLDER SQL       the tables of the lake as <tier>.<table>, the quarantine as quarantine."<name>",
                                 and the raw data of pipelines/data as raw.departures, raw.airports, raw.weather
    ask.py postgres URL SQL
    ask.py sorting FILE...       what pyarrow finds of each row group of files: the file, and what it is sorted by
    ask.py read READER FOLDER COLUMN...
                                 the rows of one table in the order of `id`, by duckdb, by pyarrow's read_table (table), by
                                 its dataset, or by that with the columns of all files (union)

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
            if not glob(f"{table}/**/*.parquet", recursive=True):
                continue
            db.execute(
                f"""CREATE VIEW {schema}."{name}" AS SELECT * FROM
                read_parquet('{table}/**/*.parquet', union_by_name = true, hive_partitioning = true)"""
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


def read(reader, folder, *columns):
    if reader == "duckdb":
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
    verbs = {"lake": lake, "postgres": postgres, "read": read, "sorting": sorting}
    for row in verbs[sys.argv[1]](*sys.argv[2:]):
        print(json.dumps(row, default=plain))


def plain(value):
    """Numbers as numbers, and what JSON does not know as text."""
    import decimal

    return float(value) if isinstance(value, decimal.Decimal) else str(value)


main()
