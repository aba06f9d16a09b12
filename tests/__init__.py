import sys

# For the format `iri`, which no schema of ours has, jsonschema would build two grammars, in 1.4 s of CPU time.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
