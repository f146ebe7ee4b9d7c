"""The network, its losses, its weight files, and what can be measured of it without training."""
