"""The products of a run: exported weights, their card, their int8 ranges and the report."""
