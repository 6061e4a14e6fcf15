"""What a trained model makes: samples, latents, pictures, and the folders they go to."""
