"""Best-of-N of others beside ours: same vLLM, same reward model, same problems (`python -m bench.bestofn`)."""
