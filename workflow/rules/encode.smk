"""Latents and text embeddings, computed once and kept under names that hold what made them.

REQUIRED INPUTS  results/data/{source}/{shard}.json, results/captions/{source}/{shard}.json
OUTPUTS          results/encoded/{source}/{shard}.json  sidecar naming the files below
                 results/latents/{source}/{px}-{id}/{shard}.arrow  undeclared: Snakemake would delete them before a
                 results/text/{source}/{id}/{shard}.arrow          rerun, and a new resolution would encode all again
"""


rule encode:
    input:
        images="results/data/{source}/{shard}.json",
        captions="results/captions/{source}/{shard}.json",
        models=model_files(CONFIG.models.vae, CONFIG.models.text_encoder),
    output:
        "results/encoded/{source}/{shard}.json",
    log:
        "results/logs/encode/{source}-{shard}.log",
    benchmark:
        "results/benchmarks/encode/{source}-{shard}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    resources:
        mem_mb=4000,
        gpu=inference_gpu(),
    params:
        settings=RUN_RECORD,
        config=step_config("encode", "source"),
        code=code("pipeline.encode.encode"),
    shell:
        "python -m pipeline encode --config {params.config:q} --settings {params.settings} --images {input.images:q}"
        " --captions {input.captions:q} --latents results/latents/{wildcards.source} --text results/text/{wildcards.source}"
        " --out {output:q} 2>&1 | tee {log:q}"
