"""Asynchronous training of neural machine translation models on GPU clusters."""

__version__ = "0.1.0"
