"""The paper's claims on one's own machine: variants trained for the same FLOPs, three seeds each, evaluated alike.

REQUIRED INPUTS  a configuration with `ablation`, such as workflow/presets/ablation_cpu.yaml; manifests of its stages
OUTPUTS          results/ablation/{arm}-{seed}/  weights, summary and metrics of one training, its evaluation
                 results/ablation.json, .png, .md  the comparison
"""


wildcard_constraints:
    arm="|".join(CONFIG.arms) or "none",
    seed=r"\d+",


use rule train as train_arm with:
    input:
        manifest=lambda wildcards: f"results/manifests/{CONFIG.arms[wildcards.arm].stage}.json",
        parent=[],
        evaluation_images=[],
        evaluation_captions=[],
    output:
        summary="results/ablation/{arm}-{seed}/summary.json",
        ema="results/ablation/{arm}-{seed}/ema.safetensors",
        metrics="results/ablation/{arm}-{seed}/metrics.jsonl",
    log:
        "results/logs/ablation/{arm}-{seed}.log",
    benchmark:
        "results/benchmarks/ablation/{arm}-{seed}.tsv"
    params:
        config=step_config("train-arm", "arm", "seed"),
        work=lambda wildcards: f"results/work/ablation/{wildcards.arm}-{wildcards.seed}",


use rule evaluate as evaluate_arm with:
    input:
        images=sharded("results/data/{source}/{shard}.json", [CONFIG.evaluation.source]),
        captions=sharded("results/captions/{source}/{shard}.json", [CONFIG.evaluation.source]),
        summary="results/ablation/{arm}-{seed}/summary.json",
        models=judging_models(),
    output:
        card="results/ablation/{arm}-{seed}/evaluation/card.json",
    log:
        "results/logs/ablation/{arm}-{seed}-evaluation.log",
    benchmark:
        "results/benchmarks/ablation/{arm}-{seed}-evaluation.tsv"
    params:
        config=step_config("evaluate", weights="ema"),  # arms have no curve to choose by
        work=lambda wildcards: f"results/work/ablation/{wildcards.arm}-{wildcards.seed}/samples",


rule ablation:
    input:
        cards=arms_of_ablation("results/ablation/{arm}-{seed}/evaluation/card.json"),
        summaries=arms_of_ablation("results/ablation/{arm}-{seed}/summary.json"),
    output:
        table="results/ablation.json",
        text="results/ablation.md",
        plot=report("results/ablation.png", category="Ablation"),
    log:
        "results/logs/ablation.log",
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        config=lambda wildcards: CONFIG.ablation.model_dump_json(),
        code=code("pipeline.ablation.compare"),
    shell:
        "python -m pipeline ablation --config {params.config:q} --folder results/ablation --out {output.table:q} 2>&1 | tee {log:q}"
