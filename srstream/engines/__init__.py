"""Engines, which run a network over tiles; `contract.py` says what they must do."""
