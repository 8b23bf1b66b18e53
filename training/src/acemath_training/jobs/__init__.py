"""Training jobs: supervised fine-tuning and the reward model."""
