"""Captions for every image: the given ones, those written by the captioner, or both.

REQUIRED INPUTS  results/data/{source}/{shard}.json
OUTPUTS          results/captions/{source}/{shard}.parquet  the rows of each image, in the order of the shard
                 results/captions/{source}/{shard}.json     sidecar

What the captioner has written lies in results/work/captions/{source}/{shard}.jsonl, undeclared, until the shard is done:
the same command goes on from there.
"""


rule caption:
    input:
        images="results/data/{source}/{shard}.json",
        models=lambda wildcards: captioner_files(wildcards.source),
    output:
        sidecar="results/captions/{source}/{shard}.json",
        captions="results/captions/{source}/{shard}.parquet",
    log:
        "results/logs/caption/{source}-{shard}.log",
    benchmark:
        "results/benchmarks/caption/{source}-{shard}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    resources:
        mem_mb=captioner_mb,
        gpu=inference_gpu(),
    params:
        settings=RUN_RECORD,
        config=step_config("caption", "source"),
        code=code("pipeline.caption.captions"),
    shell:
        "python -m pipeline caption --config {params.config:q} --settings {params.settings} --images {input.images:q}"
        " --work results/work/captions/{wildcards.source} --out {output.sidecar:q} 2>&1 | tee {log:q}"
