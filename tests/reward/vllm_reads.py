"""Run with vLLM: reads `[[module, class, document], …]`, prints what each class makes of its document."""

from __future__ import annotations

import importlib
import json
import sys

PACKAGE = "vllm.entrypoints.pooling"

parsed = []
for module, name, document in json.load(sys.stdin):
    found = getattr(importlib.import_module(f"{PACKAGE}.{module}.protocol"), name)
    model = found.model_validate(document)
    parsed.append({"document": model.model_dump(), "fields": sorted(found.model_fields), "extra": model.model_extra})
json.dump(parsed, sys.stdout)
