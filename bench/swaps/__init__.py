"""A hundred releases under load, on the real stack (`python -m bench.swaps`)."""
