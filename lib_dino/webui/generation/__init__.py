"""Generation: one generation of the host becomes an upscale."""
