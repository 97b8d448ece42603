"""Whether what lies under results/ is what was written, and what to do where it is not."""
