"""Functions that rules use: the validated configuration, slices of it, and inputs that depend on it.

This is the only file of the workflow with Python functions.
"""

import glob
import sys
from functools import cache

sys.path.insert(0, workflow.basedir)

from pipeline.config import has_table, slice_for, validate
from pipeline.errors import UserError
from pipeline.fingerprint import code_fingerprint
from pipeline.lock import DRIVER, Lock, be_alone
from pipeline.sources.inputs import files_of_shards, files_of_table

RUN_RECORD = "results/run_config.json"  # for the record, and for keys that cause no rerun; no rule has it as input
DRIVER_BEFORE = Lock(DRIVER).read()  # the last driver when this one began to plan


def validated():
    """The configuration, or one line that names the file and key."""
    try:
        return validate(config, where=", ".join(map(str, workflow.configfiles)))
    except UserError as error:
        sys.exit(f"error: {error}")


CONFIG = validated()
FINAL_STAGE = CONFIG.schedule[-1]


wildcard_constraints:
    source="|".join(CONFIG.sources),
    stage="|".join(CONFIG.stages),
    shard=r"\d{5}",
    part=r"\d+",
    parts=r"\d+",
    guidance=r"\d+\.\d+",


def be_the_only_driver():
    """Or end, with one line that names the other one: two would write the same files. No hook is called in dry runs, nor
    in the processes that Snakemake starts for jobs; when this one is, nothing has been changed yet."""
    try:
        be_alone(DRIVER, DRIVER_BEFORE)
    except UserError as error:
        sys.exit(f"error: {error}")


def plan_the_run():
    """Or end, with one line, where the disk has no room for what the jobs will make. The plan stays for the report."""
    from pipeline.plan.disk import before_run

    started = {str(file) for job in workflow.dag.needrun_jobs() for file in job.output}
    try:
        before_run(CONFIG, started, workflow.cores if workflow.local_exec else 1)
    except UserError as error:
        sys.exit(f"error: {error}")


def write_run_record():
    """Runtime and report keys reach the steps through this file. Records of processes of other configurations go."""
    from pathlib import Path

    from pipeline.artifacts import write_json

    write_json(Path(RUN_RECORD), CONFIG.model_dump(mode="json"))
    names = (*CONFIG.sources, *CONFIG.schedule)
    for record in Path("results/work/processes").glob("*-*.json"):
        if not record.stem.partition("-")[2].startswith(names):
            record.unlink()


def step_config(step, *names, **fixed):
    """Param function: the step's slice of the configuration, for the wildcards named, as one canonical JSON string."""
    return lambda wildcards: slice_for(CONFIG, step, **{name: wildcards[name] for name in names}, **fixed)


def code(module):
    """Param: hash of a step's code without comments and docstrings, so that a change of what it does reruns it."""
    return code_fingerprint(module)


def sharded(pattern, sources):
    """Expand {source} and {shard} of a pattern for all shards of the sources."""
    return [
        pattern.format(source=source, shard=f"{shard:05d}")
        for source in sources
        for shard in range(CONFIG.sources[source].shards)
    ]


def there(files):
    """Of files on this machine those that are there, or will be. A missing one is the step's to report."""
    return [file for file in files if file.startswith("results/") or os.path.exists(file)]


@cache
def files_by_shard(source):
    """For each shard of a source its files on this machine. Looked up once: a source may have thousands of both."""
    return files_of_shards(CONFIG.sources[source])


def shard_files(wildcards):
    """Input function: files of a shard on this machine whose change means collecting it again."""
    return there(files_by_shard(wildcards.source)[int(wildcards.shard)])


def table_files(wildcards):
    """Input function: files on this machine that the table of a source is made from."""
    return there(files_of_table(CONFIG.sources[wildcards.source]))


def shared_table(wildcards):
    """Input function: the table that all shards of a source share, for kinds that have one."""
    return [f"results/tables/{wildcards.source}.json"] if has_table(CONFIG.sources[wildcards.source]) else []


def table_option(wildcards, input):
    """Param function: `--table SIDECAR`, or nothing."""
    return ["--table", input.table[0]] if input.table else []


def stage_shards(pattern):
    """Input function: a file for every shard that a stage trains on."""
    return lambda wildcards: sharded(pattern, CONFIG.stage_sources(wildcards.stage))


def take_down_file(wildcards):
    """Input function: the file of samples to leave out, once there is one."""
    return [file for file in [CONFIG.filters.take_down] if os.path.exists(file)]


def manifest_mb(wildcards):
    """Resource: memory of a stage's manifest. A shard has some 20,000 images."""
    shards = sum(CONFIG.sources[source].shards for source in CONFIG.stage_sources(wildcards.stage))
    return 1000 + 5 * shards


def parent_summary(wildcards):
    """Input function: summary of the stage before, none for the first."""
    parent = CONFIG.parent(wildcards.stage)
    return [f"results/train/{parent}/summary.json"] if parent else []


def curve_shards(pattern):
    """Input function: a file for every shard of the evaluation set, where stages are scored while they train."""
    return lambda wildcards: sharded(pattern, [CONFIG.evaluation.source]) if CONFIG.evaluation.curve.images else []


def parent_option(wildcards, input):
    """Param function: `--parent FOLDER`, or nothing."""
    return ["--parent", os.path.dirname(input.parent[0])] if input.parent else []


def all_stages(pattern):
    """Expand {stage} over the schedule."""
    return [pattern.format(stage=stage) for stage in CONFIG.schedule]


def arms_of_ablation(pattern):
    """Expand {arm} and {seed} over the variants of the ablation."""
    seeds = CONFIG.ablation.seeds if CONFIG.ablation else []
    return [pattern.format(arm=arm, seed=seed) for arm in CONFIG.arms for seed in seeds]


def sample_parts(folder):
    """Input: a file for each job that draws samples, where jobs share that; else the evaluation draws them."""
    jobs = CONFIG.runtime.sample_shards
    return [f"{folder}/{part}-of-{jobs}.json" for part in range(1, jobs + 1)] if jobs > 1 else []


def guidance_cards():
    """Input: evaluations of the last stage at the scales of the sweep. Its own evaluation is one of them."""
    at = {scale: f"results/eval/{FINAL_STAGE}/guidance/{scale}/card.json" for scale in CONFIG.evaluation.guidance_sweep}
    return list((at | {CONFIG.evaluation.guidance: f"results/eval/{FINAL_STAGE}/card.json"} if at else at).values())


def earlier_cards():
    """Input: cards of earlier runs on this machine. A missing one is the step's to report."""
    return [file for file in CONFIG.report.earlier if os.path.isfile(file)]


def ablation_found():
    """The ablation and its plot, if the configuration has one and it was made: the report shows it, and never starts it."""
    files = ["results/ablation.json", "results/ablation.png"] if CONFIG.ablation else []
    return files if all(map(os.path.isfile, files)) else []


def ablation_option():
    """Param: `--ablation FILE`, or nothing."""
    return [f"--ablation={file}" for file in ablation_found()[:1]]


def content_of(*files):
    """Param: what changes with the content of files that are no inputs."""
    from pathlib import Path

    from pipeline.artifacts import sha256_file

    return [sha256_file(Path(file)) for file in files]


def guidance_sweep():
    """Input: the comparison of guidance scales, where there are any to compare."""
    return ["results/guidance.json"] if CONFIG.evaluation.guidance_sweep else []


def sampler_options():
    """Param: options of `model` for which weights it takes and how pictures are drawn: as in the evaluation."""
    evaluation, sampler = CONFIG.evaluation, CONFIG.evaluation.sampler
    options = [f"--steps {evaluation.steps} --guidance {evaluation.guidance}"]
    options += [f"--sampler {sampler.name}"] if sampler.name != "heun" else []
    options += ["--interval {} {}".format(*sampler.interval)] if sampler.interval else []
    options += ["--best"] if evaluation.weights == "best" else []
    return " ".join(options)


def inference_gpu():
    """Resource: one GPU for inference where the run has any."""
    return min(1, CONFIG.runtime.gpus)


def launcher():
    """Resource: how training processes start. A resource, since the number of GPUs must not cause a rerun."""
    runtime, processes = CONFIG.runtime, max(1, CONFIG.runtime.gpus)
    # A batch system's warning reaches the processes, and torchrun gives them the time to save (its own is 30 s).
    stops = f"--signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout {runtime.signal_lead_seconds}"
    torchrun = f"torchrun --nproc-per-node {processes} {stops}"
    if runtime.nodes > 1:
        return lambda wildcards, threads: f"{one_a_node(threads)} {torchrun} {meeting_point()}"
    return f"{torchrun} --standalone" if processes > 1 else "python"


def one_a_node(threads):
    """How a job of SLURM starts a program on each of its nodes. The step inherits nothing, so it asks for all of the job."""
    runtime = CONFIG.runtime
    gpus = f" --gpus-per-node {runtime.gpus}" if runtime.gpus else ""
    return f"srun --nodes {runtime.nodes} --ntasks {runtime.nodes} --ntasks-per-node 1 --cpus-per-task {threads}{gpus}"


def meeting_point():
    """Options of torchrun: processes meet on the first node, which is the one that the job's shell runs on."""
    job = "${SLURM_JOB_ID:?is not set: runtime.nodes above 1 needs a job of SLURM, see docs/how-to/slurm.md}"
    endpoint = "$(hostname):$((20000 + SLURM_JOB_ID % 10000))"
    return f"--nnodes {CONFIG.runtime.nodes} --rdzv-backend c10d --rdzv-id {job} --rdzv-endpoint {endpoint}"


def several_nodes():
    """Resources of a job on several nodes. With `mpi` its shell runs beside no step of its own, so `srun` may take all nodes;
    `tasks_per_gpu` keeps `tasks` from being multiplied by the GPUs."""
    nodes = CONFIG.runtime.nodes
    return {"mpi": "srun", "tasks": nodes, "tasks_per_gpu": 0} if nodes > 1 else {}


def training_mb():
    """Resource: memory of training on a node. A process a GPU, each with a copy of the weights while it loads or saves."""
    return 8000 if CONFIG.runtime.gpus == 0 else 32000 * CONFIG.runtime.gpus


def model_files(*references):
    """Input: a small file of every frozen model on this machine that changes when the model is trained again."""
    folders = [f"pipeline/embedded/{ref[9:]}" if ref.startswith("embedded:") else ref for ref in references]
    files = [f"{folder}/{name}" for folder in folders for name in ("card.json", "config.json")]
    return [file for file in dict.fromkeys(files) if os.path.exists(file)]


def judging_models():
    """Input: the models that score images."""
    evaluation = CONFIG.evaluation
    named = [evaluation.features, evaluation.clip_score, evaluation.clip_fid, evaluation.cmmd, evaluation.dino]
    if evaluation.geneval:
        named += [evaluation.geneval.detector, evaluation.geneval.clip]
    if "pickscore" in evaluation.preference:
        named.append(evaluation.pickscore)
    return model_files(*(ref for ref in named if ref))


def prompt_files():
    """Input: files of prompts on this machine. A missing one is the step's to report."""
    named = [CONFIG.evaluation.geneval.prompts] if CONFIG.evaluation.geneval else []
    return [file for file in (*named, *CONFIG.evaluation.prompt_sets.values()) if os.path.isfile(file)]


def drawn_prompts():
    """Outputs of an evaluation that the configuration asks for, by name: GenEval's result, and a page a set of prompts."""
    sets = {name: f"results/eval/{{stage}}/prompts/{name}.png" for name in CONFIG.evaluation.prompt_sets}
    pages = {f"prompts_{name}": report(file, category="Evaluation") for name, file in sets.items()}
    return pages | ({"geneval": "results/eval/{stage}/geneval.json"} if CONFIG.evaluation.geneval else {})


def captioner_mb(wildcards):
    """Resource: memory of a shard's captions, by the size of the captioner where it writes some."""
    reference, writes = CONFIG.models.captioner, CONFIG.sources[wildcards.source].caption != "keep"
    if writes and CONFIG.runtime.captioner_mb:
        return CONFIG.runtime.captioner_mb
    if not writes or reference.startswith("embedded:"):
        return 4000
    if reference.startswith("hf:"):
        return 32000
    weights = (os.path.getsize(file) for file in glob.glob(f"{glob.escape(reference)}/*.safetensors"))
    return 4000 + 2 * sum(weights) // 10**6


def captioner_files(source):
    """Input: the captioner, where the source needs it."""
    return [] if CONFIG.sources[source].caption == "keep" else model_files(CONFIG.models.captioner)
