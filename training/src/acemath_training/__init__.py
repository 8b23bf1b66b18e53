"""Training of AceMath policies and reward models: data, jobs, losses, and the embedded checkpoints."""
