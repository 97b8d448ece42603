"""Raw images to webdataset shards with a ledger row for every sample seen. Files from elsewhere are fetched first.

REQUIRED INPUTS  what sources.NAME of the configuration points at
OUTPUTS          results/tables/{source}.parquet        of URL lists and archives: ids, URLs and captions, sorted
                 results/tables/{source}.json           sidecar
                 results/data/{source}/{shard}.tar      key.jpg or key.png, key.json
                 results/data/{source}/{shard}.parquet  ledger
                 results/data/{source}/{shard}.json     sidecar: rows, bytes, sha256
                 results/downloads/{source}/            undeclared: what was fetched; a rerun fetches nothing twice
"""


rule table:
    input:
        table_files,
    output:
        sidecar="results/tables/{source}.json",
        table="results/tables/{source}.parquet",
    log:
        "results/logs/table/{source}.log",
    benchmark:
        "results/benchmarks/table/{source}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    resources:
        mem_mb=8000,
    params:
        settings=RUN_RECORD,
        config=step_config("table", "source"),
        code=code("pipeline.sources.table"),
    shell:
        "python -m pipeline table --config {params.config:q} --settings {params.settings}"
        " --downloads results/downloads/{wildcards.source} --out {output.sidecar:q} 2>&1 | tee {log:q}"


rule collect:
    input:
        files=shard_files,
        table=shared_table,
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
        table=table_option,
    shell:
        "python -m pipeline collect --config {params.config:q} --settings {params.settings} {params.table:q}"
        " --downloads results/downloads/{wildcards.source} --out {output.sidecar:q} {params.shard} 2>&1 | tee {log:q}"
