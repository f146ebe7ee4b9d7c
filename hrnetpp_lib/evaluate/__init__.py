"""From crops to metrics and Table 1."""
