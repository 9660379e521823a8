"""Bars of rows a second, as an SVG that is readable on light and dark ground."""


def draw(results, path):
    rows = sorted(results["rows"], key=lambda row: row["seconds"])
    most = max(row["rows_per_second"] for row in rows)
    bar, gap, left, width = 26, 10, 210, 720
    lines = []
    for number, row in enumerate(rows):
        y = 34 + number * (bar + gap)
        length = max(2, round((width - left - 150) * row["rows_per_second"] / most))
        colour = "#d9622b" if row["name"] == "Nexus" else "#8a94a6"
        lines.append(f'<text x="{left - 10}" y="{y + 18}" text-anchor="end">{row["name"]} {row["version"]}</text>')
        lines.append(f'<rect x="{left}" y="{y}" width="{length}" height="{bar}" rx="3" fill="{colour}"/>')
        lines.append(f'<text x="{left + length + 8}" y="{y + 18}">{row["rows_per_second"] / 1e6:.2f} M, {row["peak_mib"]} MiB</text>')
    height = 44 + len(rows) * (bar + gap)
    title = f"{results['work'].upper()}: {results['title']}, two cores; peak of memory"
    with open(path, "w", encoding="utf-8") as out:
        out.write(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
            "<style>text{font:13px sans-serif;fill:#444}@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>"
            f'<text x="0" y="16">{title}</text>{"".join(lines)}</svg>\n'
        )
