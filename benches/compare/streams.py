"""W3 and W4: W1 with PostgreSQL behind it, and W1 from Kinesis and from announced objects on S3.

Their pipelines are `telemetry.yaml` with a few lines more, written into the folder of the comparison.
"""

import json
import os
import shutil
import tempfile

from servers import Emulators, Postgres
from works import HERE, Contestant, Telemetry

# `nexus run --until-idle` ends a stream that has given nothing for so long; it is taken off the time.
IDLE_SECONDS = 3
SHARDS = 2
# Documents of a record of the stream: 245 kB, of 1 MiB that a record may have.
PACK = 1000


def pipeline(path, name, *changes):
    """Writes `telemetry.yaml` with other lines, each given by what it stands for; gives the path back."""
    with open(os.path.join(HERE, "telemetry.yaml"), encoding="utf-8") as text:
        text = text.read().replace("name: w1\n", f"name: {name}\n")
    for old, new in changes:
        assert old in text, f"telemetry.yaml has no {old!r}"
        text = text.replace(old, new)
    with open(path, "w", encoding="utf-8") as out:
        out.write(text)
    return path


class IntoPostgres(Telemetry):
    """W3: silver and gold of W1 also into PostgreSQL, and beside it a bare COPY of the same rows into the same tables."""

    peers = ()
    answers = ("bronze", "silver", "gold", "rows in PostgreSQL")
    title = "rows a second from JSON to three stored tiers and PostgreSQL"
    server = None

    def make(self):
        super().make()
        self.pipeline = pipeline(
            os.path.join(self.folder, "w3.yaml"),
            "w3",
            ("\nsources:\n", "\nsecrets:\n  pg: { env: DATABASE_URL }\n\nsources:\n"),
            ("\n\ngold:\n", "\n    postgres: { url: pg, table: events, append: true, create: true }\n\ngold:\n"),
            ("GROUP BY 1, 2\n", "GROUP BY 1, 2\n    postgres: { url: pg, table: site_minutes, key: [minute, site], create: true }\n"),
        )
        self.files_of = tempfile.mkdtemp(prefix="nexus-compare-")
        # Twice the default, so that no run has a checkpoint for want of room and another none.
        self.server = Postgres(self.files_of, self.options.cores, ["max_wal_size=4GB", "shared_buffers=256MB"])
        self.ready = {table: os.path.join(self.files_of, f"{table}.copy") for table in ("events", "site_minutes")}

    def contestants(self):
        settings = {"events": self.events}
        url = {"DATABASE_URL": self.server.url}
        yield Contestant("Nexus", self.nexus(self.pipeline, settings), self.drop, url)
        copies = [f"\\copy {table} FROM '{path}' (FORMAT binary)" for table, path in self.ready.items()]
        command = ["psql", "-q", "-v", "ON_ERROR_STOP=1", *(word for copy in copies for word in ("-c", copy)), self.server.url]
        yield Contestant("bare COPY", lambda out: command, self.empty)

    def drop(self):
        self.server.ask("DROP TABLE IF EXISTS events, site_minutes; DROP SCHEMA IF EXISTS nexus CASCADE; CHECKPOINT")

    def empty(self):
        """Empties the tables that Nexus has filled; what was in them lies ready from its first run on."""
        for table, path in self.ready.items():
            if not os.path.exists(path):
                self.server.ask(f"\\copy {table} TO '{path}' (FORMAT binary)")
        self.server.ask("TRUNCATE events, site_minutes; CHECKPOINT")

    def answer(self, out, name):
        """The lake and the tables in PostgreSQL, which a bare COPY must leave as Nexus does."""
        if name == "Nexus":
            self.lake = super().answer(out, name)
        there = self.server.ask(
            "SELECT json_build_array((SELECT count(*) FROM events), (SELECT sum(seq) FROM events), "
            "(SELECT count(*) FROM site_minutes), (SELECT sum(events) FROM site_minutes))"
        )
        silver = json.loads(self.lake[1])
        assert json.loads(there)[:2] == [silver["rows"], silver["seq"]], f"PostgreSQL has {there}, the lake {silver}"
        return [*self.lake, there]

    def table(self, results):
        of = {row["name"]: row for row in results["rows"]}
        yield "| | s | million rows/s | CPU s, without the server's | peak MiB, without the server's | bare COPY's time to this |"
        yield "|---|---|---|---|---|---|"
        for name, row in of.items():
            share = of["bare COPY"]["seconds"] / row["seconds"]
            yield (
                f"| {name} | {row['seconds']:.2f} | {row['rows_per_second'] / 1e6:.2f} | {row['cpu_seconds']:.1f} "
                f"| {row['peak_mib']} | {share:.2f} |"
            )

    def close(self):
        if self.server:
            self.server.stop()
            shutil.rmtree(self.files_of, ignore_errors=True)


class FromEmulators(Telemetry):
    """W4: W1 from files, from Kinesis, and from S3 with SQS."""

    peers = ()
    answers = ("bronze", "silver", "gold")
    rows_default = 500_000
    title = None
    emulators = None

    def make(self):
        super().make()
        self.files_of = tempfile.mkdtemp(prefix="nexus-compare-")
        # On cores of their own they would be no faster: each answers one request at a time.
        self.emulators = Emulators(self.options.test_env, self.files_of, self.options.cores)
        self.emulators.aws("stream", "telemetry", str(SHARDS))
        self.emulators.aws("put", "telemetry", str(PACK), *self.files)
        self.emulators.aws("bucket", "landing")
        # Whoever reads several shards or objects at once gets rows out of order.
        late = ("lateness: 10s", "lateness: 1d")
        file = 'file: { path: "${events}" }'
        announced = 's3: { queue: "${events}", allow: ["s3://landing/"] }'
        self.pipelines = {
            "Nexus from Kinesis": pipeline(
                os.path.join(self.folder, "w4-kinesis.yaml"), "w4", late, (file, 'kinesis: { stream: "${events}" }')
            ),
            "Nexus from S3": pipeline(os.path.join(self.folder, "w4-s3.yaml"), "w4", late, (file, announced)),
        }
        self.queue = self.emulators.aws("announce", "landing", "uploads", "60")

    def contestants(self):
        yield Contestant("Nexus from files", self.nexus(os.path.join(HERE, "telemetry.yaml"), {"events": self.events}))
        idle = ["--until-idle", f"{IDLE_SECONDS}s"]
        for name, before, events in [("Nexus from Kinesis", None, "telemetry"), ("Nexus from S3", self.upload, self.queue)]:
            command = self.nexus(self.pipelines[name], {"events": events}, *idle)
            yield Contestant(name, command, before, self.emulators.environment, IDLE_SECONDS)

    def upload(self):
        """Announces the files once more; the messages of an earlier run are gone."""
        self.emulators.aws("upload", "landing", "telemetry/", *self.files)

    def table(self, results):
        yield "| | s | CPU s | CPU µs a row | peak MiB |"
        yield "|---|---|---|---|---|"
        for row in results["rows"]:
            each = row["cpu_seconds"] / results["row_count"] * 1e6
            yield f"| {row['name']} | {row['seconds']:.2f} | {row['cpu_seconds']:.2f} | {each:.2f} | {row['peak_mib']} |"

    def close(self):
        if self.emulators:
            self.emulators.stop()
            shutil.rmtree(self.files_of, ignore_errors=True)
