"""Somebody else's programs against a real gateway process; see README.md."""
