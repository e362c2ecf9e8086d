"""Engines, which run a network over tiles; `contract.py` defines what they must do."""
