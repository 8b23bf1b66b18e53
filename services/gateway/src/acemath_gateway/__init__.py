"""Best-of-N over a policy and a reward service that always belong to one release."""
