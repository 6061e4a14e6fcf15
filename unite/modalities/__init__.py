"""One file per modality; each is found through the ``class_path`` that a yaml names, so nothing is listed here."""
