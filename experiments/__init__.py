"""Runnable experiments on real data, one file per idea: python -m experiments NAME."""
