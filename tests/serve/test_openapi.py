"""/openapi.json describes what there is."""

import re
from pathlib import Path

import jsonschema

from qtransformers.cli.serve import LOADING, SERVING
from qtransformers.sampling.settings import RANGES
from qtransformers.serve.routes import ROWS


def test_every_route_and_field_is_described(http):
    found = http.get("/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    for row in ROWS:
        operation = found["paths"][row.path.replace(":path", "")][row.method.lower()]
        assert operation["summary"]
        if row.body is not None:
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
            schema = found["components"]["schemas"][name]
            assert set(schema["properties"]) == set(row.body.__struct_encode_fields__)
            assert schema["additionalProperties"] is False
            jsonschema.Draft202012Validator.check_schema(schema)
    chat = found["components"]["schemas"]["ChatRequest"]["properties"]
    for name, (_, least, most) in RANGES.items():
        option = chat[name]["anyOf"][0]
        assert (option["minimum"], option["maximum"]) == (least, most)


def test_the_page_on_serving_has_every_route_and_flag():
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(/[\w/.]+)", " ".join(line for line in page.splitlines() if line.startswith("| `"))))
    assert {row.path.replace("/{name:path}", "/NAME") for row in ROWS} <= named
    known = set(SERVING) | set(LOADING)
    told = set(re.findall(r"`--([a-z-]+)", page))
    assert told <= known
    assert set(SERVING) - told <= {"port", "replicas", "reasoning-parser"}
