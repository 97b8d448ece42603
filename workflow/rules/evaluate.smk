"""Zero-shot evaluation of a trained stage on a COCO-format set, and the trained model as a folder.

REQUIRED INPUTS  results/train/{stage}/, shards and captions of the evaluation source, manifests for the model card
OUTPUTS          results/eval/{stage}/card.json, samples.png, gallery.json, failures.json
                 results/eval/{stage}/geneval.json, prompts/{name}.png  where evaluation.geneval and prompt_sets ask for them
                 results/eval/{stage}/samples/{part}-of-{parts}.json  where several jobs draw (runtime.sample_shards)
                 results/eval/{stage}/best/card.json                  on demand: the weights of the lowest FID of its curve
                 results/eval/{stage}/guidance/{guidance}/            the last stage at another guidance scale
                 results/guidance.json, .png  scores by guidance scale (evaluation.guidance_sweep)
                 results/fid_coco.json  the card of the run: scores, what made them, seconds and cost
                 results/model/         the last stage as a diffusers folder
"""


rule sample:
    input:
        images=sharded("results/data/{source}/{shard}.json", [CONFIG.evaluation.source]),
        captions=sharded("results/captions/{source}/{shard}.json", [CONFIG.evaluation.source]),
        summary="results/train/{stage}/summary.json",
        prompts=prompt_files(),
    output:
        "results/eval/{stage}/samples/{part}-of-{parts}.json",
    log:
        "results/logs/sample/{stage}-{part}-of-{parts}.log",
    benchmark:
        "results/benchmarks/sample/{stage}-{part}-of-{parts}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 64
    resources:
        mem_mb=8000,
        gpu=inference_gpu(),
    params:
        settings=RUN_RECORD,
        config=step_config("sample"),
        code=code("pipeline.evaluate.share"),
        images=lambda wildcards, input: [f"--images={file}" for file in input.images],
        captions=lambda wildcards, input: [f"--captions={file}" for file in input.captions],
        weights=lambda wildcards, input: os.path.dirname(input.summary),
        work=lambda wildcards: f"results/work/eval/{wildcards.stage}",
    shell:
        "python -m pipeline sample --config {params.config:q} --settings {params.settings} {params.images:q} {params.captions:q}"
        " --part {wildcards.part}/{wildcards.parts} --weights {params.weights:q} --work {params.work:q}"
        " --out {output:q} 2>&1 | tee {log:q}"


use rule sample as sample_guidance with:
    input:
        images=sharded("results/data/{source}/{shard}.json", [CONFIG.evaluation.source]),
        captions=sharded("results/captions/{source}/{shard}.json", [CONFIG.evaluation.source]),
        summary="results/train/{stage}/summary.json",
    output:
        "results/eval/{stage}/guidance/{guidance}/samples/{part}-of-{parts}.json",
    log:
        "results/logs/sample/{stage}-guidance-{guidance}-{part}-of-{parts}.log",
    benchmark:
        "results/benchmarks/sample/{stage}-guidance-{guidance}-{part}-of-{parts}.tsv"
    params:
        config=step_config("sample", "guidance"),


rule evaluate:
    input:
        images=sharded("results/data/{source}/{shard}.json", [CONFIG.evaluation.source]),
        captions=sharded("results/captions/{source}/{shard}.json", [CONFIG.evaluation.source]),
        summary="results/train/{stage}/summary.json",
        models=judging_models(),
        drawn=sample_parts("results/eval/{stage}/samples"),
        prompts=prompt_files(),
    output:
        **drawn_prompts(),
        card="results/eval/{stage}/card.json",
        samples=report("results/eval/{stage}/samples.png", category="Evaluation"),
        gallery="results/eval/{stage}/gallery.json",
        failures="results/eval/{stage}/failures.json",
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


use rule evaluate as evaluate_guidance with:
    input:
        images=sharded("results/data/{source}/{shard}.json", [CONFIG.evaluation.source]),
        captions=sharded("results/captions/{source}/{shard}.json", [CONFIG.evaluation.source]),
        summary="results/train/{stage}/summary.json",
        models=judging_models(),
        drawn=sample_parts("results/eval/{stage}/guidance/{guidance}/samples"),
    output:
        card="results/eval/{stage}/guidance/{guidance}/card.json",
    log:
        "results/logs/evaluate/{stage}-guidance-{guidance}.log",
    benchmark:
        "results/benchmarks/evaluate/{stage}-guidance-{guidance}.tsv"
    params:
        config=step_config("evaluate", "guidance"),


use rule sample as sample_best with:
    output:
        "results/eval/{stage}/best/samples/{part}-of-{parts}.json",
    log:
        "results/logs/sample/{stage}-best-{part}-of-{parts}.log",
    benchmark:
        "results/benchmarks/sample/{stage}-best-{part}-of-{parts}.tsv"
    params:
        config=step_config("sample", weights="best"),


use rule evaluate as evaluate_best with:
    input:
        images=sharded("results/data/{source}/{shard}.json", [CONFIG.evaluation.source]),
        captions=sharded("results/captions/{source}/{shard}.json", [CONFIG.evaluation.source]),
        summary="results/train/{stage}/summary.json",
        models=judging_models(),
        drawn=sample_parts("results/eval/{stage}/best/samples"),
        prompts=prompt_files(),
    output:
        card="results/eval/{stage}/best/card.json",
    log:
        "results/logs/evaluate/{stage}-best.log",
    benchmark:
        "results/benchmarks/evaluate/{stage}-best.tsv"
    params:
        config=step_config("evaluate", weights="best"),


rule guidance:
    input:
        cards=guidance_cards(),
    output:
        card="results/guidance.json",
        plot=report("results/guidance.png", category="Evaluation"),
    log:
        "results/logs/guidance.log",
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        code=code("pipeline.report.guidance"),
        stage=FINAL_STAGE,
        cards=lambda wildcards, input: [f"--cards={file}" for file in input.cards],
    shell:
        "python -m pipeline guidance --stage {params.stage} {params.cards:q} --out {output.card:q} 2>&1 | tee {log:q}"


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
        price=lambda wildcards: [CONFIG.report.dollars_per_hour, CONFIG.report.device_name],  # a name may hold braces
        stages=lambda wildcards, input: [f"--stages={file}" for file in input.stages],
    shell:
        "python -m pipeline card --settings {params.settings} --evaluation {input.evaluation:q} {params.stages:q}"
        " --out {output:q} 2>&1 | tee {log:q}"


rule model:
    input:
        summary=f"results/train/{FINAL_STAGE}/summary.json",
        manifests=all_stages("results/manifests/{stage}.json"),
        evaluation="results/fid_coco.json",
        models=model_files(CONFIG.models.vae, CONFIG.models.text_encoder),
    output:
        index="results/model/model_index.json",
        weights="results/model/transformer/diffusion_pytorch_model.safetensors",
        card="results/model/README.md",
    log:
        "results/logs/model.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        code=[code(f"pipeline.export.{name}") for name in ("trained", "diffusers_model", "diffusers_pipeline")],
        weights=lambda wildcards, input: os.path.dirname(input.summary),
        manifests=lambda wildcards, input: [f"--manifests={file}" for file in input.manifests],
        sampler=sampler_options(),
    shell:
        "python -m pipeline model --weights {params.weights:q} {params.manifests:q} --evaluation {input.evaluation:q}"
        " --out results/model {params.sampler} 2>&1 | tee {log:q}"
