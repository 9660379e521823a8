#!/usr/bin/env python3
"""How old rows are when PostgreSQL's readers see them: `make latency`.

    latency.py --nexus target/release/nexus [--rate 20000] [--seconds 60] [--every 1s]

Starts a throw-away PostgreSQL on loopback (durable: fsync is on) that notes when each transaction was committed, runs
`latency.yaml` against it, and gives percentiles of commit time less `_ingested_at`, the time at which the source put the
row, over all rows of the run. Python's standard library and PostgreSQL's programs alone.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from servers import Postgres  # noqa: E402

QUERY = """
SELECT max(rows), string_agg(round(p::numeric, 3)::text, ' ' ORDER BY n)
FROM (SELECT count(*) AS rows, percentile_cont(ARRAY[0.5, 0.9, 0.99, 1.0]) WITHIN GROUP (
        ORDER BY extract(epoch FROM pg_xact_commit_timestamp(xmin) - _ingested_at)::float8) AS ps
      FROM readings) t, unnest(ps) WITH ORDINALITY AS u (p, n)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nexus", required=True)
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--every", default="1s")
    options = parser.parse_args()
    rows = options.rate * options.seconds
    folder = tempfile.mkdtemp(prefix="nexus-latency-")
    server = Postgres(folder, settings=["track_commit_timestamp=on"])
    try:
        command = [os.path.abspath(options.nexus), "run", os.path.join(HERE, "latency.yaml")]
        settings = {"rate": options.rate, "rows": rows, "every": options.every, "lake": os.path.join(folder, "lake")}
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        before = os.times()
        subprocess.run(command, check=True, env={**os.environ, "DATABASE_URL": server.url}, stdout=subprocess.DEVNULL)
        after = os.times()
        stored = int(server.ask("SELECT count(*) FROM readings"))
        assert stored == rows, f"{stored} rows of {rows} are stored"
        median, p90, p99, most = server.ask(QUERY).split("|")[1].split()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        print(f"{rows} rows at {options.rate} a second, commits every {options.every}: from put to visible")
        print(f"p50 {median} s, p90 {p90} s, p99 {p99} s, most {most} s; {100 * cpu / options.seconds:.0f} % of a core")
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
