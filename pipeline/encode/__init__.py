"""Images to VAE latents and captions to text embeddings, row by row, in fp16 Arrow files."""
