"""Model: the host's UNet, VAE and weights files."""
