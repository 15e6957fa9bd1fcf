#!/usr/bin/env python3
"""Makes kubeconform's JSON schemas from the OpenAPI v3 documents of a running API server.

    charts/schemas.py OUT_DIR                  reads the cluster of KUBECONFIG through kubectl
    kubeconform -schema-location "OUT_DIR/{{ .Group }}_{{ .ResourceAPIVersion }}_{{ .ResourceKind }}.json" FILES

The schemas are strict: a field that the API does not know is an error. Only the standard library is used.
"""

import json
import os
import pathlib
import subprocess
import sys

PREFIX = "#/components/schemas/"
KUBECTL = os.environ.get("KUBECTL", "kubectl")


def raw(path):
    """A GET on the API server, decoded."""
    return json.loads(subprocess.run([KUBECTL, "get", "--raw", path], check=True, capture_output=True).stdout)


def convert(node):
    """One OpenAPI schema as strict JSON schema."""
    if isinstance(node, list):
        return [convert(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: convert(value) for key, value in node.items()}
    if isinstance(out.get("$ref"), str):
        out["$ref"] = out["$ref"].replace(PREFIX, "#/definitions/")
    open_ended = "additionalProperties" in out or node.get("x-kubernetes-preserve-unknown-fields")
    # `properties` is also an ordinary field name (JSONSchemaProps has one): there the node has no type.
    if out.get("type") == "object" and "properties" in out and not open_ended:
        out["additionalProperties"] = False
    if out.get("nullable") is True and isinstance(out.get("type"), str):
        out["type"] = [out["type"], "null"]
    return out


def references(node):
    """Names of the definitions that a converted schema points to."""
    if isinstance(node, list):
        for item in node:
            yield from references(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref" and isinstance(value, str):
                yield value.removeprefix("#/definitions/")
            else:
                yield from references(value)


def closure(name, schemas):
    """The definitions that `name` needs, itself included."""
    found, todo = {}, [name]
    while todo:
        current = todo.pop()
        if current not in found:
            found[current] = schemas[current]
            todo.extend(references(schemas[current]))
    return found


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    written = 0
    for path, entry in raw("/openapi/v3")["paths"].items():
        if not path.startswith(("api/", "apis/")):
            continue
        group_version = path.split("/", 1)[1]
        group, _, version = group_version.rpartition("/")
        schemas = {
            name: convert(schema)
            for name, schema in raw(entry["serverRelativeURL"]).get("components", {}).get("schemas", {}).items()
        }
        for name, schema in schemas.items():
            for gvk in schema.get("x-kubernetes-group-version-kind", []):
                if (gvk["group"], gvk["version"]) != (group, version):
                    continue
                document = {"$ref": f"#/definitions/{name}", "definitions": closure(name, schemas)}
                # kubeconform calls the core group by its version, and lowers the kind.
                file = out / f"{group or version}_{version}_{gvk['kind'].lower()}.json"
                file.write_text(json.dumps(document))
                written += 1
    print(f"{written} schemas in {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
