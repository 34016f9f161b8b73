"""Unified SAM training: the optimizer, the samplers, the models, the datasets and the training loop.

Importing this package imports no torch; its modules do where they need it.
"""
