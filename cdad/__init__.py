"""cdad: continual anomaly detection with one latent-diffusion model."""
