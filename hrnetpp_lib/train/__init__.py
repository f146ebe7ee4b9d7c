"""One training stage, from a recipe to a checkpoint."""
