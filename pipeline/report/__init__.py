"""What a run has to show for itself: the evaluation card, the report page and the table on the terminal."""
