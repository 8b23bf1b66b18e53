"""One module for each system: `create(options)` gives what `bench.reward.worker.Scorer` describes."""
