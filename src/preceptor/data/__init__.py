"""Rows, tokens, targets, batches and mixtures: everything between a file and the model's input."""
