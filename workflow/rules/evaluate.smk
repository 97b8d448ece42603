"""Zero-shot evaluation of a trained stage on a COCO-format set, and the trained model as a folder.

REQUIRED INPUTS  results/train/{stage}/, shards and captions of the evaluation source, manifests for the model card
OUTPUTS          results/eval/{stage}/card.json, samples.png, gallery.json
                 results/fid_coco.json  the card of the run: scores, what made them, seconds and cost
                 results/model/         weights, config and model card of the last stage
"""


rule evaluate:
    input:
        images=sharded("results/data/{source}/{shard}.json", [CONFIG.evaluation.source]),
        captions=sharded("results/captions/{source}/{shard}.json", [CONFIG.evaluation.source]),
        summary="results/train/{stage}/summary.json",
        models=model_files(CONFIG.evaluation.features, CONFIG.evaluation.clip_score),
    output:
        card="results/eval/{stage}/card.json",
        samples=report("results/eval/{stage}/samples.png", category="Evaluation"),
        gallery="results/eval/{stage}/gallery.json",
    log:
        "results/logs/evaluate/{stage}.log",
    benchmark:
        "results/benchmarks/evaluate/{stage}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 64
    resources:
        mem_mb=8000,
        gpu=inference_gpu(),
    params:
        settings=RUN_RECORD,
        config=step_config("evaluate"),
        code=code("pipeline.evaluate.evaluate"),
        images=lambda wildcards, input: [f"--images={file}" for file in input.images],
        captions=lambda wildcards, input: [f"--captions={file}" for file in input.captions],
        weights=lambda wildcards, input: os.path.dirname(input.summary),
        out=lambda wildcards, output: os.path.dirname(output.card),
        work=lambda wildcards: f"results/work/eval/{wildcards.stage}",
    shell:
        "python -m pipeline evaluate --config {params.config:q} --settings {params.settings} {params.images:q} {params.captions:q}"
        " --weights {params.weights:q} --work {params.work:q} --out {params.out:q} 2>&1 | tee {log:q}"


rule card:
    input:
        evaluation=f"results/eval/{FINAL_STAGE}/card.json",
        stages=all_stages("results/train/{stage}/summary.json"),
    output:
        report("results/fid_coco.json", category="Evaluation"),
    log:
        "results/logs/card.log",
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        settings=RUN_RECORD,
        code=code("pipeline.report.card"),
        price=[CONFIG.report.dollars_per_hour, CONFIG.report.device_name],
        stages=lambda wildcards, input: [f"--stages={file}" for file in input.stages],
    shell:
        "python -m pipeline card --settings {params.settings} --evaluation {input.evaluation:q} {params.stages:q}"
        " --out {output:q} 2>&1 | tee {log:q}"


rule model:
    input:
        summary=f"results/train/{FINAL_STAGE}/summary.json",
        manifests=all_stages("results/manifests/{stage}.json"),
    output:
        config="results/model/config.json",
        weights="results/model/model.safetensors",
        card="results/model/README.md",
    log:
        "results/logs/model.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        code=code("pipeline.export.trained"),
        weights=lambda wildcards, input: os.path.dirname(input.summary),
        manifests=lambda wildcards, input: [f"--manifests={file}" for file in input.manifests],
        sampler=f"--steps {CONFIG.evaluation.steps} --guidance {CONFIG.evaluation.guidance}",
    shell:
        "python -m pipeline model --weights {params.weights:q} {params.manifests:q} --out results/model {params.sampler}"
        " 2>&1 | tee {log:q}"
