"""The commands that run a model, under LightningCLI: their settings, their run folder, and where memory ends."""
