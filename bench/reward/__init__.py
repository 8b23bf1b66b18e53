"""How fast and how exact is the reward engine beside transformers, vLLM and infinity? See README.md."""
