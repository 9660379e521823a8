"""Makes the events of Nexmark, and holds the tables of a lake to the answers of a batch, by DuckDB.

    nexmark.py make FOLDER EVENTS      writes person, auction, bid and side_input as Parquet
    nexmark.py compare FOLDER LAKE     prints one JSON array a query: its name, the rows of the batch, and how many rows
                                       are in one answer only
"""

import json
import os
import sys
from glob import glob

import duckdb

HERE = os.path.dirname(os.path.abspath(__file__))
TABLES = ("person", "auction", "bid", "side_input")
# Of the others each row is in the lake once.
KEYS = {"q9": "id", "q18": "bidder, auction", "q19": "auction"}


def connect():
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'; SET threads = 2")
    return db


def text(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return file.read()


def make(folder, events):
    db = connect()
    db.execute(text("events.sql").replace("$events", str(int(events))))
    os.makedirs(folder, exist_ok=True)
    for table in TABLES:
        order = "" if table == "side_input" else "ORDER BY rowid"
        db.execute(f"COPY (SELECT * FROM {table} {order}) TO '{folder}/{table}.parquet' (FORMAT parquet)")


def compare(folder, lake):
    db = connect()
    for table in TABLES:
        db.execute(f"CREATE VIEW {table} AS SELECT * FROM '{folder}/{table}.parquet'")
    for section in text("answers.sql").split("\n-- q")[1:]:
        name, query = section.split("\n", 1)
        name = f"q{name}"
        db.execute(f"CREATE OR REPLACE TABLE answer AS {query}")
        columns = ", ".join(column[0] for column in db.execute("DESCRIBE answer").fetchall())
        newest = ""
        if name in KEYS:
            newest = f"QUALIFY row_number() OVER (PARTITION BY {KEYS[name]} ORDER BY _sequence DESC) = 1"
        [files] = glob(f"{lake}/*/{name}")
        db.execute(f"CREATE OR REPLACE VIEW found AS SELECT {columns} FROM '{files}/*.parquet' {newest}")
        differ = "SELECT count(*) FROM (FROM {} EXCEPT ALL FROM {})"
        rows, missing, added = (
            db.execute(sql).fetchone()[0]
            for sql in ("SELECT count(*) FROM answer", differ.format("answer", "found"), differ.format("found", "answer"))
        )
        print(json.dumps([name, rows, missing + added]))


{"make": make, "compare": compare}[sys.argv[1]](*sys.argv[2:])
