"""`WS /v1/score/live`: candidates are scored while they are being written."""
