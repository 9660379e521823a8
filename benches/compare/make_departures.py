#!/usr/bin/env python3
"""Makes the departures of workload W2: `make_departures.py FOLDER [YEARS] [FROM]`.

All departures from New York in 2013, as `pipelines/data` has them (or the folder FROM: its `flights-2013-*.csv.gz`), and
the same once more for each further year, as CSV, a file a year: 336 776 rows and 31 MB each. Only the years of a row differ.
"""

import glob
import gzip
import multiprocessing
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SHIPPED = os.path.normpath(os.path.join(HERE, "..", "..", "pipelines", "data"))
YEAR = 2013
YEAR_ROWS = 336_776


def make_year(job):
    path, year, months = job
    if os.path.exists(path):
        return
    with open(path + ".part", "w", encoding="utf-8", newline="\n", buffering=1 << 20) as out:
        for number, month in enumerate(months):
            with gzip.open(month, "rt", encoding="utf-8", newline="\n") as rows:
                header = next(rows)
                if number == 0:
                    out.write(header)
                for row in rows:
                    # The year stands first; `time_hour`, the scheduled hour in UTC, last. It may be the next year's.
                    rest, time = row[4:].rsplit(",", 1)
                    out.write(f"{year}{rest},{int(time[:4]) + year - YEAR}{time[4:]}")
    os.rename(path + ".part", path)


def make(folder, years, shipped=SHIPPED):
    """Makes what is not there yet, and returns the paths."""
    months = sorted(glob.glob(os.path.join(shipped, f"flights-{YEAR}-*.csv.gz")))
    if not months:
        raise SystemExit(f"there are no flights-{YEAR}-*.csv.gz in {shipped}")
    os.makedirs(folder, exist_ok=True)
    numbers = range(YEAR, YEAR + years)
    paths = [os.path.join(folder, f"departures-{year}.csv") for year in numbers]
    with multiprocessing.Pool() as pool:
        pool.map(make_year, [(path, year, months) for path, year in zip(paths, numbers)], chunksize=1)
    return paths


if __name__ == "__main__":
    given = sys.argv[1:]
    made = make(given[0], int(given[1]) if len(given) > 1 else 20, *given[2:3])
    print(f"{len(made)} files, {sum(os.path.getsize(path) for path in made)} bytes")
