"""Models: the table of networks, their weights, and the graphs that engines run."""
