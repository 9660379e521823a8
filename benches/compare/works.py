"""What is compared: works W1 and W2, which read files. `streams.py` has W3 and W4, `nexmark.py` W5, `growth.py` the rest.

A work makes its data, names who contends (Nexus and its peers) with the command of each, and reads the answer of a run.
"""

import json
import os
import shutil
from typing import Callable, NamedTuple, Optional

import make_data
import make_departures
from measure import text_of

HERE = os.path.dirname(os.path.abspath(__file__))
# The name of a peer, its Python package, and the virtual environment that it shares with others.
PEERS = {
    "duckdb": ("DuckDB", "duckdb", "venv"),
    "polars": ("Polars", "polars", "venv"),
    "datafusion": ("DataFusion", "datafusion", "venv"),
    "spark": ("Spark Structured Streaming", "pyspark", "venv"),
    "flink": ("PyFlink", "apache-flink", "venv-flink"),
    "pathway": ("Pathway", "pathway", "venv-pathway"),
}
# The columns of W1, for those who store CSV.
TELEMETRY = {
    "bronze": "event_id device_id site ts seq temp_c humidity battery_v status firmware lat lon",
    "silver": "event_id device_id site ts seq temp_c temp_f humidity battery_v firmware lat lon",
    "gold": "minute site events mean_temp_c min_temp_c max_temp_c mean_humidity",
}


class Contestant(NamedTuple):
    """One that does the work."""

    name: str
    # The command that leaves the answer in a folder.
    command: Callable[[str], list]
    # What is done before each run, outside of the measurement.
    before: Optional[Callable[[], None]] = None
    environment: Optional[dict] = None
    # How long the command waits for more before it ends, which does not count.
    idle_seconds: float = 0.0


class Work:
    """What all works share."""

    # Who can do it besides Nexus.
    peers = ()
    # By what the answers of two are the same, in the order in which `answer` gives them.
    answers = ()
    rows_default = 5_000_000
    # What a picture of the results is called; None for no picture.
    title = None

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.python = python_of(folder, PEERS["duckdb"][2])
        self.rows = options.rows or self.rows_default

    def nexus(self, pipeline, settings, *more):
        command = [self.options.nexus, "run", pipeline, *more]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        return lambda out: [*command, "--set", f"lake={out}"]

    def peer(self, peer, script, *arguments):
        name, _, home = PEERS[peer]
        path = os.path.join(HERE, "peers", f"{script}_{peer}.py")
        return Contestant(name, lambda out: [python_of(self.folder, home), path, *arguments, out])

    def asked_peers(self):
        return [peer for peer in self.options.peers if peer in self.peers]

    def ask(self, sql):
        """What DuckDB answers to one row of a query, a text a column."""
        script = "import duckdb, sys; print(*duckdb.connect().execute(sys.argv[1]).fetchone(), sep='\\n')"
        return text_of([self.python, "-c", script, "SET TimeZone = 'UTC'; SET enable_progress_bar = false;" + sql]).splitlines()

    def rows_of(self, _group):
        """The rows that a contestant of a group reads."""
        return self.rows

    def table(self, results):
        yield "| | version | s | CPU s | million rows/s | MB/s | peak MiB | time to the fastest peer's |"
        yield "|---|---|---|---|---|---|---|---|"
        for row in sorted(results["rows"], key=lambda row: row["seconds"]):
            yield (
                f"| {row['name']} | {row['version']} | {row['seconds']:.2f} | {row['cpu_seconds']:.1f} "
                f"| {row['rows_per_second'] / 1e6:.2f} | {results['bytes'] / row['seconds'] / 1e6:.0f} | {row['peak_mib']} "
                f"| {row['to_fastest_peer'] or ''} |"
            )

    def close(self):
        """Ends what the work has started."""


class Telemetry(Work):
    """W1: JSON events of 12 fields; W1z: the same, gzipped."""

    peers = ("duckdb", "polars", "datafusion", "spark", "flink", "pathway")
    answers = ("bronze", "silver", "gold")
    title = "rows a second from JSON to three stored tiers"

    def make(self, zipped=False):
        data = os.path.join(self.folder, f"data-{self.rows}")
        made = make_data.make(data, self.rows, zipped=zipped)
        self.bytes = sum(os.path.getsize(path) for path in made)
        suffix = ".jsonl.gz" if zipped else ".jsonl"
        inputs = os.path.join(self.folder, f"inputs-{self.rows}{'z' if zipped else ''}")
        self.files = link_all([path.removesuffix(".jsonl") + suffix for path in made], inputs)
        self.events = os.path.join(inputs, "*" + suffix)

    def contestants(self):
        yield Contestant("Nexus", self.nexus(os.path.join(HERE, "telemetry.yaml"), {"events": self.events}))
        for peer in self.asked_peers():
            yield self.peer(peer, "telemetry", self.events)

    def answer(self, out, name):
        tables = [("bronze", "events"), ("silver", "events"), ("gold", "site_minutes")]
        as_csv = {"PyFlink": csv_of_flink, "Pathway": csv_of_pathway}.get(name)
        bronze, silver, gold = (as_csv(out, tier) if as_csv else stored(out, tier, table) for tier, table in tables)
        return self.ask(f"""
            SELECT (SELECT to_json(b) FROM (
                      SELECT count(*) AS rows, sum(seq)::BIGINT AS seq, count(DISTINCT event_id) AS ids,
                             round(sum(temp_c), 2) AS temp_c, min(ts)::TIMESTAMPTZ::VARCHAR AS first,
                             max(ts)::TIMESTAMPTZ::VARCHAR AS last
                      FROM {bronze}) b),
                   (SELECT to_json(s) FROM (
                      SELECT count(*) AS rows, sum(seq)::BIGINT AS seq, round(sum(temp_f), 2) AS temp_f,
                             round(sum(lat), 2) AS lat
                      FROM {silver}) s),
                   (SELECT to_json(list(g ORDER BY minute, site)) FROM (
                      SELECT minute::TIMESTAMPTZ::VARCHAR AS minute, site, events, round(mean_temp_c, 6) AS mean_temp_c,
                             min_temp_c, max_temp_c, round(mean_humidity, 6) AS mean_humidity
                      FROM {gold}) g)
        """)


class Zipped(Telemetry):
    """W1z."""

    title = "rows a second from gzipped JSON to three stored tiers"

    def make(self):
        super().make(zipped=True)


class Departures(Work):
    """W2: the year of real departures, again and again, as CSV."""

    peers = ("duckdb", "polars", "datafusion")
    answers = ("bronze", "silver", "gold", "vibranium")
    rows_default = 20 * make_departures.YEAR_ROWS
    title = "rows a second from CSV to four stored tiers"

    def make(self):
        years = max(1, round(self.rows / make_departures.YEAR_ROWS))
        self.rows = years * make_departures.YEAR_ROWS
        shipped = self.options.departures
        made = make_departures.make(os.path.join(self.folder, "departures"), years, shipped)
        self.bytes = sum(os.path.getsize(path) for path in made)
        inputs = os.path.join(self.folder, f"inputs-departures-{years}")
        link_all(made, inputs)
        self.departures = os.path.join(inputs, "*.csv")

    def contestants(self):
        reference = self.options.departures
        settings = {
            "departures": self.departures,
            "airports": os.path.join(reference, "airports.csv"),
            "weather": os.path.join(reference, "weather.csv.gz"),
        }
        yield Contestant("Nexus", self.nexus(os.path.join(HERE, "departures.yaml"), settings))
        for peer in self.asked_peers():
            yield self.peer(peer, "departures", self.departures, reference)

    def answer(self, out, _name):
        bronze, silver, gold, vibranium = (
            stored(out, tier, table)
            for tier, table in [
                ("bronze", "departures"), ("silver", "departures"), ("gold", "hourly_delays"), ("vibranium", "delay_alerts"),
            ]
        )  # fmt: skip
        return self.ask(f"""
            SELECT (SELECT to_json(b) FROM (
                      SELECT count(*) AS rows, count(dep_time) AS departed, sum(dep_delay) AS dep_delay,
                             sum(distance) AS distance, count(DISTINCT tailnum) AS tails, sum(flight)::BIGINT AS flights,
                             min(time_hour)::TIMESTAMPTZ::VARCHAR AS first, max(time_hour)::TIMESTAMPTZ::VARCHAR AS last
                      FROM {bronze}) b),
                   (SELECT to_json(s) FROM (
                      SELECT count(*) AS rows, sum(dep_delay) AS dep_delay, sum(arr_delay) AS arr_delay,
                             sum(air_time) AS air_time, count(DISTINCT dest) AS places
                      FROM {silver}) s),
                   (SELECT to_json(list(g ORDER BY hour, origin)) FROM (
                      SELECT hour::TIMESTAMPTZ::VARCHAR AS hour, origin, departures, round(avg_delay, 6) AS avg_delay,
                             max_delay
                      FROM {gold}) g),
                   (SELECT to_json(list(v ORDER BY hour, origin)) FROM (
                      SELECT hour::TIMESTAMPTZ::VARCHAR AS hour, origin, departures, round(avg_delay, 6) AS avg_delay,
                             max_delay, name, temp, wind_speed, visib
                      FROM {vibranium}) v)
        """)


def link_all(paths, folder):
    """A folder of exactly these files, for peers that take a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    links = [os.path.join(folder, os.path.basename(path)) for path in paths]
    for path, link in zip(paths, links):
        os.link(path, link)
    return links


def stored(out, tier, table):
    """The files of a table, wherever it is that a contestant stores it."""
    places = [f"{out}/{tier}/{table}", f"{out}/{tier}", f"{out}/{tier}.parquet"]
    place = next(place for place in places if os.path.exists(place))
    return f"'{place}'" if place.endswith(".parquet") else f"'{place}/*.parquet'"


def csv_of_flink(out, tier):
    """What Flink stores has no header."""
    return f"read_csv('{out}/{tier}/*', header = false, names = {TELEMETRY[tier].split()})"


def csv_of_pathway(out, tier):
    """What Pathway stores is a stream of changes, with nanoseconds; bronze and silver only grow."""
    time = "minute" if tier == "gold" else "ts"
    columns = ", ".join(TELEMETRY[tier].split())
    net = f"GROUP BY {columns} HAVING sum(diff) > 0" if tier == "gold" else ""
    rows = f"SELECT {columns} FROM read_csv('{out}/{tier}.csv', header = true, types = {{'{time}': 'VARCHAR'}}) {net}"
    return f"(SELECT * REPLACE (left({time}, 23) || 'Z' AS {time}) FROM ({rows}))"


def python_of(folder, home):
    return os.path.join(folder, home, "bin", "python")


def same(answers, names):
    """Ends the program where two answers differ; `names` says what each part is."""
    first, *others = answers
    for other in others:
        for name, ours, theirs in zip(names, answers[first], answers[other]):
            if json.loads(ours) != json.loads(theirs):
                raise SystemExit(f"{name} differs: {first} has {ours[:400]}\n{other} has {theirs[:400]}")
