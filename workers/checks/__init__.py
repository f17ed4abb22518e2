"""Metrics that ask the model: a contract and a file each."""
