"""What a step needs to run at scale; knows no files."""
