"""Report: figures and pictures of a finished run."""
