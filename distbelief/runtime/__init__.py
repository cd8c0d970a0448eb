"""Where a run lives: on Ray, or inside one process."""
