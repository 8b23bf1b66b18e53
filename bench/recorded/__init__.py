"""Recorded candidates, jobs replayed on them, and figures with intervals: what the replays of `bench` share."""
