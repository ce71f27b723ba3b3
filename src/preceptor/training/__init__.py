"""What the trainer is made of: engines, checkpoints, logs, faults, and how its arguments are read."""
