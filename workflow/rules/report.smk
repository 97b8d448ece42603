"""One page that shows the run.

REQUIRED INPUTS  the card, every stage's manifest, summary and metrics, the evaluation's gallery
OUTPUTS          results/report.html
"""


rule report:
    input:
        card="results/fid_coco.json",
        manifests=all_stages("results/manifests/{stage}.json"),
        stages=all_stages("results/train/{stage}/summary.json"),
        gallery=f"results/eval/{FINAL_STAGE}/gallery.json",
        templates=["pipeline/report/templates/page.html", "pipeline/report/templates/page.css"],
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
    shell:
        "python -m pipeline report --settings {params.settings} --card {input.card:q} {params.manifests:q} {params.stages:q}"
        " --evaluation {params.evaluation:q} --out {output:q} 2>&1 | tee {log:q}"
