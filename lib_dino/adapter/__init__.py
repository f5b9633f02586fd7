"""Adapter: cross-attention conditioning on DINOv2 tokens."""
