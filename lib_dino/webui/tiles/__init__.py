"""Tiles: a batch of them as one nested img2img of the host."""
