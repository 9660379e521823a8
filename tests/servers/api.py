"""Holds the pages of a running pipeline to what they promise.

    api.py URL METRICS_PAGE

The OpenAPI document passes its linter, each answer of a GET fits the schema that the document gives, and the metrics are
read by the client library of Prometheus; each is on the page about metrics.
"""

import json
import sys
import urllib.request

from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from prometheus_client.parser import text_string_to_metric_families


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def main():
    url, page = sys.argv[1:]
    document = json.loads(get(url + "/api/v1/openapi.json"))
    validate(document)
    checked = 0
    for path, operations in document["paths"].items():
        if "get" not in operations:
            continue
        schema = operations["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        answer = json.loads(get(url + path.replace("{table}", "bronze.ticks")))
        Draft202012Validator({**schema, "components": document["components"]}).validate(answer)
        # A field that the document does not know, or an empty answer, would pass the schema.
        known = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]["properties"]
        assert set(answer) == set(known), f"{path}: {set(answer) ^ set(known)}"
        checked += 1
    assert checked > 8, checked
    told = open(page).read()
    families = list(text_string_to_metric_families(get(url + "/metrics")))
    for family in families:
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"| `{name}` | {family.type} |" in told, f"{name} ({family.type}) is not on the page about metrics"
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        line = next(line for line in told.splitlines() if line.startswith(f"| `{name}` "))
        for label in labels:
            assert f"`{label}`" in line, f"{name}: {label}"
    assert len(families) > 25, len(families)
    print(f"{checked} answers and {len(families)} families of metrics are as they should be")


main()
