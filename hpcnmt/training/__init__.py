"""Where models, data and the engine meet: the training job, its run folder, and validation."""
