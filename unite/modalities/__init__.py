"""One file per modality; each is found through the ``class_path`` of a yaml, so nothing is listed here."""
