"""A local web page to draw with a trained model, and to compare it with the stages before it."""
