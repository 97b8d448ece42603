"""train: one stage of the MicroDiT, from its parent's weights to its own."""
