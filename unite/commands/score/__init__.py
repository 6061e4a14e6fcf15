"""``unite score``: metrics of files, from this package or any other. A module for each kind of data."""
