"""Adaptive N on recorded candidates: accuracy against tokens, beside fixed N."""
