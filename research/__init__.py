"""What the tables compare with: baselines and training tricks. It is not in the wheel."""
