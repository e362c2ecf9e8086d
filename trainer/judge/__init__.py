"""The evaluation of networks: measures, test sets, a perceptual distance and result tables."""
