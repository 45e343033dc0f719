"""Translation models. They know nothing of ranks, data files or configuration files."""
