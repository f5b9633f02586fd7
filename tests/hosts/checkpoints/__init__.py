"""Tiny seeded checkpoints of every family the hosts load."""
