"""A query of Nexmark by DuckDB, as `tests/nexmark/answers.sql` has it, into Parquet or into nothing."""

import os
import sys

import duckdb

events, query, into, out = sys.argv[1:]
answers = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../tests/nexmark/answers.sql")
with open(answers, encoding="utf-8") as text:
    sections = dict(section.split("\n", 1) for section in text.read().split("\n-- ")[1:])
db = duckdb.connect(config={"threads": 2, "preserve_insertion_order": False})
db.execute("SET TimeZone = 'UTC'")
for table in ("person", "auction", "bid"):
    db.execute(f"CREATE VIEW {table} AS SELECT * FROM '{events}/{table}.parquet'")
if into == "nothing":
    # It makes all rows and gives none of them away.
    db.execute(f"EXPLAIN ANALYZE {sections[query]}").fetchall()
else:
    os.mkdir(f"{out}/{query}")
    db.execute(f"COPY ({sections[query]}) TO '{out}/{query}/all.parquet' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)")
