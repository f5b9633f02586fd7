"""Sampling: img2img of a batch of tiles, its predicted clean picture corrected at each model call."""
