"""Where crystals come from: sets that travel with the package, and files."""
