"""The reward service: scores candidate solutions with a one-label sequence classifier, on an engine of our own."""
