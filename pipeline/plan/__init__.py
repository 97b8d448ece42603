"""What a run will fetch, keep, take and cost, before it is started."""
