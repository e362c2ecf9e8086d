"""What judges a network: measures, test sets, a perceptual distance, and the table made of them."""
