"""Raw images to webdataset shards with a ledger row for every sample seen.

REQUIRED INPUTS  what sources.NAME of the configuration points at
OUTPUTS          results/data/{source}/{shard}.tar      key.jpg or key.png, key.json
                 results/data/{source}/{shard}.parquet  ledger
                 results/data/{source}/{shard}.json     sidecar: rows, bytes, sha256
"""


rule collect:
    input:
        source_files,
    output:
        sidecar="results/data/{source}/{shard}.json",
        images="results/data/{source}/{shard}.tar",
        ledger="results/data/{source}/{shard}.parquet",
    log:
        "results/logs/collect/{source}-{shard}.log",
    benchmark:
        "results/benchmarks/collect/{source}-{shard}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    resources:
        mem_mb=2000,
    params:
        settings=RUN_RECORD,
        config=step_config("collect", "source"),
        code=code("pipeline.sources.collect"),
        shard=lambda wildcards: int(wildcards.shard),
    shell:
        "python -m pipeline collect --config {params.config:q} --settings {params.settings} --out {output.sidecar:q} {params.shard}"
        " 2>&1 | tee {log:q}"
