"""Scripts that train and measure the networks that ship: `python -m training.NAME`, see docs/training/."""
