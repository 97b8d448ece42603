"""Training, one job a stage, each from the weights of the stage before.

REQUIRED INPUTS  results/encoded/{source}/{shard}.json of the stage's sources
                 results/data/, results/captions/        of the evaluation source, which is kept out of training
                 take_down.txt, if it is there           samples to leave out (filters.take_down)
OUTPUTS          results/manifests/{stage}.json, .arrow  which samples the stage trains on, and why not the others
                 results/manifests/{stage}.validation.arrow  samples held out for the validation loss
                 results/train/{stage}/                  weights, summary, metrics, sample grid

With evaluation.curve also results/train/{stage}/best.safetensors, undeclared: it is there where there are scores.
Checkpoints lie in results/work/train/{stage}/, undeclared: Snakemake deletes declared outputs of a job that fails.
The same command goes on from the last one. Training has no code param: days of GPU are not repeated for an edit;
summary.json records the commit.
"""


rule manifest:
    input:
        encoded=stage_shards("results/encoded/{source}/{shard}.json"),
        evaluation=sharded("results/data/{source}/{shard}.json", [CONFIG.evaluation.source]),
        evaluation_captions=sharded("results/captions/{source}/{shard}.json", [CONFIG.evaluation.source]),
        take_down=take_down_file,
    output:
        manifest="results/manifests/{stage}.json",
        index="results/manifests/{stage}.arrow",
        validation="results/manifests/{stage}.validation.arrow",
    log:
        "results/logs/manifest/{stage}.log",
    benchmark:
        "results/benchmarks/manifest/{stage}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    resources:
        mem_mb=manifest_mb,
    params:
        config=step_config("manifest", "stage"),
        code=code("pipeline.manifest.build"),
        encoded=lambda wildcards, input: [f"--encoded={file}" for file in input.encoded],
        evaluation=lambda wildcards, input: [f"--evaluation={file}" for file in input.evaluation],
        evaluation_captions=lambda wildcards, input: [f"--evaluation-captions={file}" for file in input.evaluation_captions],
    shell:
        "python -m pipeline manifest --config {params.config:q} {params.encoded:q} {params.evaluation:q}"
        " {params.evaluation_captions:q} --out {output.manifest:q} 2>&1 | tee {log:q}"


rule train:
    input:
        manifest="results/manifests/{stage}.json",
        parent=parent_summary,
        evaluation_images=curve_shards("results/data/{source}/{shard}.json"),
        evaluation_captions=curve_shards("results/captions/{source}/{shard}.json"),
    output:
        summary="results/train/{stage}/summary.json",
        model="results/train/{stage}/model.safetensors",
        ema="results/train/{stage}/ema.safetensors",
        optimizer="results/train/{stage}/optimizer.safetensors",
        metrics="results/train/{stage}/metrics.jsonl",
        samples=report("results/train/{stage}/samples.png", category="Training", labels={"stage": "{stage}"}),
    log:
        "results/logs/train/{stage}.log",
    benchmark:
        "results/benchmarks/train/{stage}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 64  # all there are: Snakemake lowers it to --cores
    resources:
        **several_nodes(),
        mem_mb=training_mb(),
        nodes=CONFIG.runtime.nodes,  # also for one: SLURM would spread the GPUs of a job over several
        gpu=CONFIG.runtime.nodes * CONFIG.runtime.gpus,
        launch=launcher(),
        runtime=10080,  # minutes: a week, unless the site allows less
    params:
        settings=RUN_RECORD,
        config=step_config("train", "stage"),
        parent=parent_option,
        evaluation_images=lambda wildcards, input: [f"--evaluation-images={file}" for file in input.evaluation_images],
        evaluation_captions=lambda wildcards, input: [f"--evaluation-captions={file}" for file in input.evaluation_captions],
        work=lambda wildcards: f"results/work/train/{wildcards.stage}",
        out=lambda wildcards, output: os.path.dirname(output.summary),
    shell:
        "{resources.launch} -m pipeline train --config {params.config:q} --settings {params.settings} --manifest {input.manifest:q}"
        " --deadline-minutes {resources.runtime} {params.parent:q} {params.evaluation_images:q}"
        " {params.evaluation_captions:q} --work {params.work:q} --out {params.out:q} 2>&1 | tee {log:q}"
