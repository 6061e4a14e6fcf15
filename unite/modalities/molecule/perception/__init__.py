"""From elements and positions to a molecule."""
