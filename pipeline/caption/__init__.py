"""Captions: kept, filled in or written by a frozen captioner."""
