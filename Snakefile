"""Shoestring: from raw images to results/fid_coco.json.

    snakemake --cores all results/fid_coco.json

REQUIRED INPUTS  config.yaml (the embedded default: nothing is downloaded), or an overlay given by --configfile
OUTPUTS          results/fid_coco.json, results/report.html, results/model/

The steps live in pipeline/ and know nothing of Snakemake; the rules wire files to one command each.
"""

from snakemake.utils import min_version

min_version("9.27")


configfile: "config.yaml"


container: "shoestring.sif"  # only by `--sdm apptainer`; docs/how-to/containers.md


include: "workflow/rules/common.smk"
include: "workflow/rules/embedded.smk"
include: "workflow/rules/sources.smk"
include: "workflow/rules/captions.smk"
include: "workflow/rules/encode.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/ablation.smk"
include: "workflow/rules/report.smk"


report: "workflow/report/workflow.rst"


onstart:
    be_the_only_driver()
    plan_the_run()
    write_run_record()


rule all:
    default_target: True
    input:
        "results/fid_coco.json",
        "results/report.html",
        "results/model/model_index.json",
        guidance_sweep(),
