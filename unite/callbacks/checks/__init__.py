"""What is looked at before a run's first step, so that it does not fail late."""
