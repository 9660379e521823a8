"""Prints the lines of an archive's objects below a folder, each as a JSON array of the object's path and the line."""

import gzip
import json
import pathlib
import sys

root = pathlib.Path(sys.argv[1])
for path in sorted(path for path in root.rglob("*") if path.is_file() and not path.relative_to(root).parts[0].startswith("_")):
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    assert content.endswith(b"\n"), f"{path} does not end with a line"
    for line in content[:-1].split(b"\n"):
        print(json.dumps([str(path.relative_to(root)), line.decode()]))
