"""The policy agent: runs one stock vLLM server for each policy version, and is never in the data path."""
