"""One page that shows the run.

REQUIRED INPUTS  the card, every stage's manifest, summary and metrics, the evaluation's gallery and failures
                 results/guidance.json                where evaluation.guidance_sweep asks for it
                 cards of earlier runs                where report.earlier names them
                 results/ablation.json, .png          where there is one and the configuration has `ablation`; not made for it
                 results/benchmarks/                  as far as it is there
                 results/work/plan/plan.json          what was planned before the first job
OUTPUTS          results/report.html
"""


rule report:
    input:
        card="results/fid_coco.json",
        manifests=all_stages("results/manifests/{stage}.json"),
        stages=all_stages("results/train/{stage}/summary.json"),
        gallery=f"results/eval/{FINAL_STAGE}/gallery.json",
        failures=f"results/eval/{FINAL_STAGE}/failures.json",
        guidance=guidance_sweep(),
        earlier=earlier_cards(),
        templates=sorted(glob.glob("pipeline/report/templates/*.*")),
    output:
        report("results/report.html", category="Report"),
    log:
        "results/logs/report.log",
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        settings=RUN_RECORD,
        code=code("pipeline.report.page"),
        report=lambda wildcards: CONFIG.report.model_dump_json(),
        manifests=lambda wildcards, input: [f"--manifests={file}" for file in input.manifests],
        stages=lambda wildcards, input: [f"--stages={file}" for file in input.stages],
        evaluation=lambda wildcards, input: os.path.dirname(input.gallery),
        guidance=lambda wildcards, input: [f"--guidance={file}" for file in input.guidance],
        ablation=ablation_option(),
        ablation_content=content_of(*ablation_found()),
    shell:
        "python -m pipeline report --settings {params.settings} --card {input.card:q} {params.manifests:q} {params.stages:q}"
        " --evaluation {params.evaluation:q} --benchmarks results/benchmarks --plan results/work/plan/plan.json {params.guidance:q} {params.ablation:q}"
        " --out {output:q} 2>&1 | tee {log:q}"
