"""Mixed load while parts of the stack are killed (`python -m bench.kills`)."""
