"""Scores of generated images: FID, KID, CLIP score, and the accuracy of attributes read off the pixels."""
