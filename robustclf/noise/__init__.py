"""See the noise: make it, measure it, find the rows, score in spite of it.

Everything here takes the probabilities of any classifier and needs numpy, not torch.
"""
