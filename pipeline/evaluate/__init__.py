"""evaluate: sample for the captions of an evaluation set and score the images."""
