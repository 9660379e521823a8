"""W5: queries of Nexmark, each alone, over 10 million events that lie as Parquet, into nothing and into Parquet.

The events and the pipeline are those of `tests/nexmark`; of the pipeline, each query is cut out with what it reads.
"""

import json
import os
import re
import subprocess

from works import HERE, PEERS, Contestant, Work

TESTS = os.path.normpath(os.path.join(HERE, "..", "..", "tests", "nexmark"))
QUERIES = ("q0", "q1", "q2", "q4", "q5", "q7", "q8")
# Tables that a query reads and that do not bear its name.
READS = {"q4": ("q9_bids",)}
COLUMNS = {
    "q0": "auction, bidder, price, date_time, extra",
    "q1": "auction, bidder, price, date_time, extra",
    "q2": "auction, price",
    "q4": "category, mean",
    "q5": "start, auction, bids",
    "q7": "auction, bidder, price, date_time, extra",
    "q8": "id, name, start",
}


class Nexmark(Work):
    """W5."""

    peers = ("duckdb", "datafusion")
    answers = ("rows",)
    rows_default = 10_000_000

    def make(self):
        self.events = os.path.join(self.folder, f"nexmark-{self.rows}")
        if not os.path.exists(os.path.join(self.events, "side_input.parquet")):
            make = [self.python, os.path.join(TESTS, "nexmark.py"), "make", self.events, str(self.rows)]
            subprocess.run(make, check=True)
        self.bytes = sum(entry.stat().st_size for entry in os.scandir(self.events))
        asked = self.options.queries or QUERIES
        self.pipelines = {(query, into): self.pipeline(query, into) for into in ("nothing", "Parquet") for query in asked}

    def contestants(self):
        for (query, into), path in self.pipelines.items():
            group = f"{query} into {into}"
            yield Contestant(f"{group}: Nexus", self.nexus(path, {"events": self.events}))
            for peer in self.asked_peers():
                contestant = self.peer(peer, "nexmark", self.events, query, into.lower())
                yield contestant._replace(name=f"{group}: {PEERS[peer][0]}")

    def pipeline(self, query, into):
        """Writes the pipeline of the tests with one query alone, and gives its path."""
        with open(os.path.join(TESTS, "nexmark.yaml"), encoding="utf-8") as text:
            sections = re.split(r"^(?=\w)", text.read(), flags=re.MULTILINE)
        kept = []
        for section in sections:
            tier = section.split(":", 1)[0]
            if tier == "secrets":
                continue
            if tier in ("silver", "gold"):
                head, *tables = re.split(r"^(?=  \w)", section, flags=re.MULTILINE)
                wanted = [table for table in tables if self.is_read(table.split(":", 1)[0].strip(), query)]
                section = head + "".join(self.stored(table, query, into) for table in wanted) if wanted else ""
            kept.append(section)
        # Epochs as long as those of the other works.
        text = "".join(kept).replace("bytes: 8MiB", "bytes: 256MiB").replace("memory: 4GiB", "memory: 1GiB")
        path = os.path.join(self.folder, f"w5-{query}-{into.lower()}.yaml")
        with open(path, "w", encoding="utf-8") as out:
            out.write(text)
        return path

    @staticmethod
    def is_read(table, query):
        return table == query or table.startswith(f"{query}_") or table in READS.get(query, ())

    @staticmethod
    def stored(table, query, into):
        """The last table of a query into nothing is not stored either."""
        table = table.rstrip() + "\n"
        if into == "Parquet" or table.split(":", 1)[0].strip() != query:
            return table
        return re.sub(r"\{ sql: (.*) \}\n", r"{ store: false, sql: \1 }\n", table).replace("    sql:", "    store: false\n    sql:", 1)

    def answer(self, out, name):
        """How many rows, and the sum of the rows' hashes; of nothing, nothing."""
        query, _, into = name.split(":", 1)[0].split(" ")
        if into == "nothing":
            return ['"nothing"']
        [folder] = [f"{out}/{tier}" for tier in (f"silver/{query}", f"gold/{query}", query) if os.path.isdir(f"{out}/{tier}")]
        # Prices and means are rounded: sums of floating point depend on their order.
        columns = COLUMNS[query].replace("mean", "round(mean, 3)::VARCHAR AS mean")
        columns = columns.replace("price", "round(price, 3)::DOUBLE AS price")
        columns = re.sub(r"\b(date_time|start)\b", r"epoch_us(\1::TIMESTAMPTZ) AS \1", columns)
        sql = f"SELECT count(*), coalesce(sum(hash(found)::HUGEINT), 0)::VARCHAR FROM (SELECT {columns} FROM '{folder}/*.parquet') found"
        return [json.dumps(self.ask(sql))]

    def table(self, results):
        """A line a query, with the seconds of each and the peak of its memory."""
        names = list(dict.fromkeys(row["name"] for row in results["rows"]))
        yield "| | " + " | ".join(f"{name}, s (MiB)" for name in names) + " | Nexus, million events/s | time to the fastest peer's |"
        yield "|---" * (len(names) + 3) + "|"
        for group in dict.fromkeys(row["group"] for row in results["rows"]):
            of = {row["name"]: row for row in results["rows"] if row["group"] == group}
            cells = (f"{of[name]['seconds']:.2f} ({of[name]['peak_mib']})" for name in names)
            ratio = of["Nexus"]["to_fastest_peer"] or ""
            yield f"| {group} | {' | '.join(cells)} | {of['Nexus']['rows_per_second'] / 1e6:.2f} | {ratio} |"
