"""What differs between captioners: their prompts and inputs, how words are chosen, and code that comes with a model."""
