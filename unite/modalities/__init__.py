"""One package or file per modality, each with what only that kind of data knows; none imports another."""
