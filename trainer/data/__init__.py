"""Training data: pictures, clips and footage, their degradation, and the pairs made of them."""
