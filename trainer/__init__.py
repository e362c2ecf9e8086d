"""Training of srstream's networks. Needs `srstream[train]`."""
