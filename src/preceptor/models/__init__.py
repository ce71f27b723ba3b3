"""Loading, saving and looking into transformers models."""
