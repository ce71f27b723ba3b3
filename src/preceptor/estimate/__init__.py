"""What a training step will take in memory and time, found by running it on tensors without memory."""
