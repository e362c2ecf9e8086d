"""Training data: pictures, clips and footage, what degrades them, and the pairs made of them."""
