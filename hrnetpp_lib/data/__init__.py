"""From annotation files and photographs to crops."""
