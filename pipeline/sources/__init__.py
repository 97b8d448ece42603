"""Raw images to webdataset shards: one module a kind of source, `collect` puts them to use."""
