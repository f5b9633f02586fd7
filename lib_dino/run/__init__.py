"""Run: one picture through its tiles."""
