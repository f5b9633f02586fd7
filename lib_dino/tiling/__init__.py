"""Tiling: where pixels lie. Plans, weights, resize operators and windows; no network."""
