"""One file per command; nothing in the package imports them but `unite.cli`."""
