"""What the default run needs and downloads nowhere.

REQUIRED INPUTS  none
OUTPUTS          results/embedded/coco/  held-out scenes in COCO's format, with their true attributes
                 results/embedded/{model}/  the frozen models trained again from scratch, on request:
                 snakemake --cores all embedded_models
"""


rule embedded_coco:
    output:
        captions="results/embedded/coco/captions.json",
        attributes="results/embedded/coco/attributes.json",
        images=directory("results/embedded/coco/images"),
    log:
        "results/logs/embedded_coco.log",
    benchmark:
        "results/benchmarks/embedded_coco.tsv"
    conda:
        "../../envs/pipeline.yaml"
    params:
        code=code("pipeline.embedded.scenes"),
    shell:
        "python -m pipeline embedded coco --images 1280 --two-objects 256 --out results/embedded/coco 2>&1 | tee {log:q}"


rule embedded_model:
    output:
        "results/embedded/{model}/card.json",
    log:
        "results/logs/embedded_{model}.log",
    benchmark:
        "results/benchmarks/embedded_{model}.tsv"
    wildcard_constraints:
        model="vae|clip|captioner",
    conda:
        "../../envs/pipeline.yaml"
    shell:
        "python -m pipeline embedded {wildcards.model} --out results/embedded/{wildcards.model} 2>&1 | tee {log:q}"


rule embedded_models:
    input:
        expand("results/embedded/{model}/card.json", model=["vae", "clip", "captioner"]),
