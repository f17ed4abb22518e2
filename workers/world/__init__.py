"""The embedded world: scenes of several objects, questions about them, and ten noisy observers."""
