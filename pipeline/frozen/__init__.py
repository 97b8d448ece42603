"""Frozen models: used, never trained. All are loaded from `embedded:NAME`, a local folder or `hf:OWNER/NAME@REVISION`.

One module a kind, imported where it is needed: `vae.load_vae`, `text.load_text_encoder`, `captioner.load_captioner`,
`clip.load_clip`; `models.identity` says what a reference stands for without importing torch.
"""
