"""What a keypoint, a crop and a heatmap are: pure functions."""
