"""Baselines and training tricks that the tables compare with. They are not in the wheel."""
