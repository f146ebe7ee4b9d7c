"""Looking at heatmaps and data interactively."""
