"""What the product does when measured: `python -m benchmarks.NAME`, see docs/measured.md."""
