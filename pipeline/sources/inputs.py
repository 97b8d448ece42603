"""Which files on this machine a shard, or the table of a source, is made from: what the rules declare as inputs.

A shard has its own archives alone. With all of them a source of 14,000 archives in 700 shards would have ten million
inputs, and a change of one archive would collect them all again.
"""

from pipeline.config.sources import Source, expanded, local_files
from pipeline.sources.fraction import file_shares

DEALT = {"webdataset": "path", "archives": "files", "hf_parquet": "files"}  # the key whose files are dealt out to the shards


def files_of_shards(source: Source) -> list[list[str]]:
    """For each shard its files, sorted, those that all shards read among them. They need not be there; what lies elsewhere
    is left out."""
    pattern = getattr(source, DEALT[source.kind]) if source.kind in DEALT else None
    dealt = expanded(pattern) if pattern else []
    shared = set(local_files(source)) - set(dealt)
    used = list(file_shares(dealt, source.fraction))
    return [sorted(shared | set(_dealt(used, source, shard))) for shard in range(source.shards)]


def _dealt(files: list[str], source: Source, shard: int) -> list[str]:
    shares_files = source.kind == "hf_parquet" and files and len(files) < source.shards
    return [files[shard % len(files)]] if shares_files else files[shard :: source.shards]


def files_of_table(source: Source) -> list[str]:
    """Files that the table which all shards share is made from, sorted."""
    return expanded(source.table) if source.table else []
