"""What the policy's canary says of good and of wrong loads on real vLLM (`python -m bench.canary`)."""
