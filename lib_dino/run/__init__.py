"""Run: one picture through its tiles.

plan -> prepare -> tiles (each batch sampled, retried where it drifts, blended) -> finish -> outcome.
"""
