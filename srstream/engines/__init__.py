"""Engines run a network over tiles of one fixed shape; see `contract`."""
