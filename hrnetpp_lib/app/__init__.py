"""What users run: the notebooks, a plan, poses of a photograph."""
