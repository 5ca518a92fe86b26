"""Frozen features and what they are worth: extraction, weighted kNN, linear probes, pictures of neighbours."""
