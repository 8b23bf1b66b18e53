"""The embedded checkpoints: adapters, merging, publication."""
