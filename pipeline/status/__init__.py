"""Where a run stands: what is done, what would run again and why, what runs now, what failed."""
