"""One way to be an HTTP service: what the gateway, the reward service and the policy agent do the same way."""
