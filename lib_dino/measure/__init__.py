"""Measure: how far two pictures are apart."""
