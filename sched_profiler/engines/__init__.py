"""Adapters: how the batches of an engine that we do not own become records."""
