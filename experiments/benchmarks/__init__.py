"""Benchmarks beside peers: python -m experiments.benchmarks NAME."""
