"""How time and memory of W1 grow with the rows: Nexus alone, on one input and on one of so many times the rows, in turn."""

import os
import shutil

import make_data
from works import HERE, Contestant, Telemetry


class Growth(Telemetry):
    """W1 and W1 with `--times` the rows, which are removed afterwards."""

    peers = ()
    answers = ("rows",)
    rows_default = 2_000_000
    title = None
    larger = None

    def make(self):
        super().make()
        many = self.rows * self.options.times
        self.larger = os.path.join(self.folder, f"data-{many}")
        make_data.make(self.larger, many, files=20 * self.options.times)
        self.events_of = {"once": self.events, f"{self.options.times} times": os.path.join(self.larger, "*.jsonl")}

    def contestants(self):
        for name, events in self.events_of.items():
            yield Contestant(f"{name}: Nexus", self.nexus(os.path.join(HERE, "telemetry.yaml"), {"events": events}))

    def rows_of(self, group):
        return self.rows if group == "once" else self.rows * self.options.times

    def answer(self, out, name):
        rows = self.rows_of(name.rpartition(": ")[0])
        [found] = self.ask(f"SELECT count(*) FROM '{out}/bronze/events/*.parquet'")
        assert int(found) == rows, f"{found} rows of {rows} are stored"
        return [found]

    def table(self, results):
        yield "| million rows | s | CPU s | million rows/s | peak MiB | s, to so many times the smaller | peak, to the smaller's |"
        yield "|---|---|---|---|---|---|---|"
        first = results["rows"][0]
        for row in results["rows"]:
            rows = self.rows_of(row["group"])
            linear = row["seconds"] / first["seconds"] / (rows / self.rows)
            yield (
                f"| {rows / 1e6:g} | {row['seconds']:.2f} | {row['cpu_seconds']:.1f} | {row['rows_per_second'] / 1e6:.2f} "
                f"| {row['peak_mib']} | {linear:.2f} | {row['peak_mib'] / first['peak_mib']:.2f} |"
            )

    def close(self):
        if self.larger:
            shutil.rmtree(self.larger, ignore_errors=True)
