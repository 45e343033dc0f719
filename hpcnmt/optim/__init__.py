"""Flat parameters, Adam, learning-rate schedule: everything that changes parameters, free of models and ranks."""
