"""What becomes of a run: exported weights, their card, their ranges for 8 bits, the report."""
