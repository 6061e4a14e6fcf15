"""Pages that show runs and files of samples: one HTML file each, which needs no network. Imports nothing heavy."""
