"""What a model is, where its weights are, and how its graph is built."""
